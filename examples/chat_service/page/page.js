"use strict";
// One panel a device. All that it shows comes from that device's own service.

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
    const answer = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  };

  const line = (message) => {
    const row = document.createElement("li");
    row.className = message.role === "user" ? "user" : "other";
    row.classList.toggle("unsent", !message.sent);
    row.textContent = message.text; // never as HTML: anybody may have written it
    if (!message.sent) {
      const mark = document.createElement("span");
      mark.className = "hidden";
      mark.textContent = " (not sent yet)";
      row.append(mark);
    }
    return row;
  };

  new EventSource(`${name}/users/demo/events`).onmessage = (event) => {
    const now = JSON.parse(event.data);
    find(".state").textContent = now.state;
    find(".state").classList.toggle("online", now.state === "online");
    find(".count").textContent = now.pending;
    find(".pending").classList.toggle("some", now.pending > 0);
    find(".empty").hidden = now.messages.length > 0;
    const list = find(".messages");
    list.replaceChildren(...now.messages.map(line));
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
