/*
 * Fails, cuts short or ends the process at the n-th file operation below one directory.
 *
 * Preloaded (LD_PRELOAD) before libc, it passes everything on. `fault_place` names the directory
 * and `fault_set` arms it; tests/faults/shim.py calls both through ctypes, in the process that is
 * to suffer. Only what happens below the place is counted: the interpreter reads its modules in
 * peace.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Kinds of operations, as bits of a mask; tests/faults/shim.py has the same list. */
enum { OPEN = 1, READ = 2, WRITE = 4, SYNC = 8, CUT = 16, NAME = 32, LOOK = 64, MAP = 128, LOCK = 256, MAKE = 512 };
/* What happens at the n-th: it fails; a write stores half and the one after it fails; the end. */
enum { PASS = 0, FAIL = 1, TEAR = 2, KILL = 3 };

#define FDS 4096
static char place[PATH_MAX];
static char of[FDS][64];            /* the last part of the name of each descriptor below the place */
static atomic_int ours[FDS];
static atomic_int action, code, mask, for_good, hit;
static atomic_long left_over, passed;
static char where[128];

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

void fault_place(const char *directory) { snprintf(place, sizeof place, "%s/", directory); }

void fault_heal(void) { atomic_store(&action, PASS); }

void fault_set(long nth, int what, int error, int which, int stays) {
    atomic_store(&action, PASS);
    atomic_store(&left_over, nth);
    atomic_store(&passed, 0);
    atomic_store(&hit, 0);
    atomic_store(&code, error);
    atomic_store(&mask, which);
    atomic_store(&for_good, stays);
    where[0] = 0;
    atomic_store(&action, what);
}

int fault_hit(void) { return atomic_load(&hit); }
long fault_passed(void) { return atomic_load(&passed); }
const char *fault_where(void) { return where; }

static int below(const char *path) {
    return place[0] && path && strncmp(path, place, strlen(place)) == 0;
}

static int is_ours(int fd) { return fd >= 0 && fd < FDS && atomic_load(&ours[fd]); }

/* What is to happen to this operation: PASS, FAIL or TEAR (with errno set). */
static int due(int kind, const char *call, const char *name) {
    int what = atomic_load(&action);
    if (what == PASS || !(kind & atomic_load(&mask))) return PASS;
    atomic_fetch_add(&passed, 1);
    long left = atomic_fetch_sub(&left_over, 1);
    if (left > 1) return PASS;
    if (left == 1) {
        const char *last = strrchr(name, '/');
        snprintf(where, sizeof where, "%s %s", call, last ? last + 1 : name);
        atomic_store(&hit, 1);
        if (what == KILL) {
            kill(getpid(), SIGKILL);
            for (;;) pause();
        }
        if (what == TEAR && kind == WRITE) return TEAR;
    } else if (!atomic_load(&for_good) && !(what == TEAR && left == 0)) {
        return PASS;
    }
    errno = atomic_load(&code);
    return FAIL;
}

static int due_fd(int kind, const char *call, int fd) {
    return is_ours(fd) ? due(kind, call, of[fd]) : PASS;
}

static int due_path(int kind, const char *call, const char *path) {
    return below(path) ? due(kind, call, path) : PASS;
}

static int opened(int fd, const char *path) {
    if (fd >= 0 && fd < FDS) {
        int own = below(path);
        if (own) {
            const char *last = strrchr(path, '/');
            snprintf(of[fd], sizeof of[fd], "%s", last ? last + 1 : path);
        }
        atomic_store(&ours[fd], own);
    }
    return fd;
}

#define OPENING(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        int mode = va_arg(more, int); \
        va_end(more); \
        if (due_path(flags & O_CREAT && access(path, F_OK) ? OPEN | MAKE : OPEN, "open", path)) return -1; \
        return opened(real(path, flags, mode), path); \
    }
OPENING(open)
OPENING(open64)

int close(int fd) {
    REAL(close);
    if (fd >= 0 && fd < FDS) atomic_store(&ours[fd], 0);
    return real(fd);
}

#define READING(name, offset_t) \
    ssize_t name(int fd, void *to, size_t size, offset_t at) { \
        REAL(name); \
        return due_fd(READ, "read", fd) ? -1 : real(fd, to, size, at); \
    }
READING(pread, off_t)
READING(pread64, off64_t)

#define WRITING(name, offset_t) \
    ssize_t name(int fd, const void *from, size_t size, offset_t at) { \
        REAL(name); \
        int what = due_fd(WRITE, "write", fd); \
        return what == FAIL ? -1 : real(fd, from, what == TEAR ? (size + 1) / 2 : size, at); \
    }
WRITING(pwrite, off_t)
WRITING(pwrite64, off64_t)

ssize_t read(int fd, void *to, size_t size) {
    REAL(read);
    return due_fd(READ, "read", fd) ? -1 : real(fd, to, size);
}

ssize_t write(int fd, const void *from, size_t size) {
    REAL(write);
    int what = due_fd(WRITE, "write", fd);
    return what == FAIL ? -1 : real(fd, from, what == TEAR ? (size + 1) / 2 : size);
}

#define ON_FD(name, kind, call, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        return due_fd(kind, call, fd) ? -1 : real arguments; \
    }
ON_FD(fsync, SYNC, "fsync", (int fd), (fd))
ON_FD(fdatasync, SYNC, "fsync", (int fd), (fd))
ON_FD(ftruncate, CUT, "ftruncate", (int fd, off_t size), (fd, size))
ON_FD(ftruncate64, CUT, "ftruncate", (int fd, off64_t size), (fd, size))
ON_FD(fstat, LOOK, "fstat", (int fd, struct stat *to), (fd, to))
ON_FD(fstat64, LOOK, "fstat", (int fd, struct stat64 *to), (fd, to))
ON_FD(flock, how & LOCK_UN ? 0 : LOCK, "flock", (int fd, int how), (fd, how))

#define ON_PATH(name, kind, call, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        return due_path(kind, call, path) ? -1 : real arguments; \
    }
ON_PATH(stat, LOOK, "stat", (const char *path, struct stat *to), (path, to))
ON_PATH(stat64, LOOK, "stat", (const char *path, struct stat64 *to), (path, to))
ON_PATH(lstat, LOOK, "stat", (const char *path, struct stat *to), (path, to))
ON_PATH(lstat64, LOOK, "stat", (const char *path, struct stat64 *to), (path, to))
ON_PATH(unlink, NAME, "unlink", (const char *path), (path))
ON_PATH(rename, NAME | MAKE, "rename", (const char *path, const char *to), (path, to))
ON_PATH(link, NAME | MAKE, "link", (const char *path, const char *to), (path, to))

#define MAPPING(name, offset_t) \
    void *name(void *near, size_t size, int may, int flags, int fd, offset_t at) { \
        REAL(name); \
        return due_fd(MAP, "mmap", fd) ? MAP_FAILED : real(near, size, may, flags, fd, at); \
    }
MAPPING(mmap, off_t)
MAPPING(mmap64, off64_t)

#define CONTROL(name) \
    int name(int fd, int command, ...) { \
        REAL(name); \
        va_list more; \
        va_start(more, command); \
        void *argument = va_arg(more, void *); \
        va_end(more); \
        /* To let go of a lock never fails. */ \
        if (command == F_SETLK && ((struct flock *)argument)->l_type != F_UNLCK \
            && due_fd(LOCK, "lock", fd)) return -1; \
        return real(fd, command, argument); \
    }
CONTROL(fcntl)
CONTROL(fcntl64)
