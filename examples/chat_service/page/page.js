"use strict";
// One panel for each device. All its data comes from the service of that device.

for (const name of ["phone", "laptop"]) {
  const panel = document.querySelector("template").content.firstElementChild.cloneNode(true);
  const find = (selector) => panel.querySelector(selector);
  panel.id = name;
  panel.setAttribute("aria-labelledby", `${name}-title`);
  find("h2").id = `${name}-title`;
  find("h2").textContent = name;
  find(".messages").setAttribute("aria-label", `Messages on the ${name}`);
  find(".switch").setAttribute("aria-label", `Network of the ${name}`);
  find("input").id = `${name}-text`;
  find("label").htmlFor = `${name}-text`;
  find("label").textContent = `Message from the ${name}`;
  document.querySelector("main").append(panel);

  const post = async (path, body) => {
    const response = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    if (!response.ok) throw new Error(`${path}: ${response.status}`);
  };

  const rowOf = (message) => {
    const row = document.createElement("li");
    row.className = message.role === "user" ? "user" : "other";
    row.classList.toggle("unsent", !message.sent);
    row.textContent = message.text; // never as HTML: the text may come from anybody
    if (!message.sent) {
      const mark = document.createElement("span");
      mark.className = "hidden";
      mark.textContent = " (not sent yet)";
      row.append(mark);
    }
    return row;
  };

  new EventSource(`${name}/users/demo/events`).onmessage = (event) => {
    const view = JSON.parse(event.data);
    find(".state").textContent = view.state;
    find(".state").classList.toggle("online", view.state === "online");
    find(".count").textContent = view.pending;
    find(".pending").classList.toggle("some", view.pending > 0);
    find(".empty").hidden = view.messages.length > 0;
    const list = find(".messages");
    list.replaceChildren(...view.messages.map(rowOf));
    list.scrollTop = list.scrollHeight;
  };

  find(".switch").addEventListener("click", async (event) => {
    const toggle = event.currentTarget;
    const up = toggle.getAttribute("aria-checked") !== "true";
    await post(`links/${name}`, { up });
    toggle.setAttribute("aria-checked", String(up));
    panel.classList.toggle("cut", !up);
  });

  find("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = find("input").value;
    find("input").value = "";
    await post(`${name}/users/demo/messages`, { text });
  });
}
