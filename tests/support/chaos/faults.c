/* Preloaded into every process of a run (LD_PRELOAD): faults of the disk and of the clock at a chosen call.
 *
 * It counts the calls by which any process changes a file under one folder. At call number `stop_at` the calling thread
 * waits until the campaign has done what it wants (kill it, kill another process, …). From call number `refuse_at` on,
 * calls that need room fail, as on a full or read-only disk. The state is shared by all processes through one file.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control { /* the same in control.py */
    uint64_t calls, stop_at, refuse_at;
    int64_t clock;
    uint32_t stopped, released, refuse, refused, cut, engine, judge;
    char folder[256], match[64], where[512];
};

enum need { NOTHING, ROOM, WRITABLE }; /* a full disk refuses ROOM; a read-only one everything but fsync */

static struct control *shared;

static struct control *control(void) {
    if (shared) return shared;
    const char *path = getenv("LWZ_CHAOS");
    if (!path) return NULL;
    int fd = (int)syscall(257 /* openat */, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return NULL;
    void *found = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (found == MAP_FAILED) return NULL;
    return shared = found;
}

static struct control *chosen(const char *path) {
    struct control *c = control();
    if (!c || !c->folder[0]) return NULL;
    char resolved[PATH_MAX];
    if (path[0] != '/') {
        if (!getcwd(resolved, sizeof resolved - 1)) return NULL;
        size_t size = strlen(resolved);
        snprintf(resolved + size, sizeof resolved - size, "/%s", path);
        path = resolved;
    }
    return strncmp(path, c->folder, strlen(c->folder)) == 0 ? c : NULL;
}

static struct control *chosen_fd(int fd, char *path) {
    if (!control()) return NULL;
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(name, path, PATH_MAX - 1);
    if (size <= 0) return NULL;
    path[size] = 0;
    return chosen(path);
}

/* Counts a call. Returns 1 at the call to stop at, after which the caller calls `wait_here`. */
static int counted(struct control *c, const char *path) {
    if (c->match[0] && !strstr(path, c->match)) return 0;
    uint64_t number = __atomic_add_fetch(&c->calls, 1, __ATOMIC_SEQ_CST);
    return number == c->stop_at;
}

static void wait_here(struct control *c, const char *what, const char *path) {
    snprintf(c->where, sizeof c->where, "%s %s", what, path + strlen(c->folder));
    uint32_t releases = __atomic_load_n(&c->released, __ATOMIC_SEQ_CST); /* a count: the next moment may be armed at once */
    __atomic_store_n(&c->stopped, (uint32_t)getpid(), __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&c->released, __ATOMIC_SEQ_CST) == releases) usleep(300);
}

static int refused(struct control *c, enum need need, const char *what, const char *path) {
    if (!c->refuse || !c->refuse_at || c->calls < c->refuse_at || need == NOTHING) return 0;
    if (c->refuse == ENOSPC && need != ROOM) return 0;
    if (__atomic_fetch_add(&c->refused, 1, __ATOMIC_SEQ_CST) == 0)
        snprintf(c->where, sizeof c->where, "%s %s", what, path + strlen(c->folder));
    errno = (int)c->refuse;
    return 1;
}

static int before(const char *what, const char *path, enum need need) {
    struct control *c = chosen(path);
    if (!c) return 0;
    if (counted(c, path)) wait_here(c, what, path);
    return refused(c, need, what, path);
}

static int before_fd(const char *what, int fd, enum need need) {
    char path[PATH_MAX];
    struct control *c = chosen_fd(fd, path);
    if (!c) return 0;
    if (counted(c, path)) wait_here(c, what, path);
    return refused(c, need, what, path);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPENED(name, flags_at)                                                                                       \
    mode_t mode = 0;                                                                                                 \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
    if (flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR)) {                                                           \
        int makes = (flags & O_CREAT) && access(path, F_OK) != 0;                                                    \
        int writes = makes || (flags & (O_TRUNC | O_WRONLY | O_RDWR));                                               \
        if (makes || (flags & O_TRUNC)) {                                                                            \
            if (before("open", path, makes ? ROOM : WRITABLE)) return -1;                                            \
        } else if (writes) {                                                                                         \
            struct control *c = chosen(path);                                                                        \
            if (c && refused(c, WRITABLE, "open", path)) return -1;                                                  \
        }                                                                                                            \
    }

int open(const char *path, int flags, ...) { REAL(open); OPENED(open, 1) return real(path, flags, mode); }
int open64(const char *path, int flags, ...) { REAL(open64); OPENED(open64, 1) return real(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { REAL(openat); OPENED(openat, 2) return real(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { REAL(openat64); OPENED(openat64, 2) return real(at, path, flags, mode); }

/* A write that is stopped has first written a part of its bytes: `cut` of 1000. */
static ssize_t cut_write(struct control *c, const char *path, int fd, const void *data, size_t size, off_t at, int placed) {
    size_t first = size * c->cut / 1000;
    if (first) {
        if (placed) syscall(18 /* pwrite64 */, fd, data, first, at);
        else syscall(1 /* write */, fd, data, first);
    }
    wait_here(c, "write", path);
    if (refused(c, ROOM, "write", path)) return -1;
    size_t rest = size - first;
    const char *left = (const char *)data + first;
    ssize_t done = placed ? syscall(18, fd, left, rest, at + (off_t)first) : syscall(1, fd, left, rest);
    return done < 0 ? done : (ssize_t)first + done;
}

#define WRITTEN(fd, data, size, at, placed)                                                     \
    char path[PATH_MAX];                                                                        \
    struct control *c = fd > 2 ? chosen_fd(fd, path) : NULL;                                    \
    if (c) {                                                                                    \
        if (counted(c, path)) return cut_write(c, path, fd, data, size, at, placed);            \
        if (refused(c, ROOM, "write", path)) return -1;                                         \
    }

ssize_t write(int fd, const void *data, size_t size) { REAL(write); WRITTEN(fd, data, size, 0, 0) return real(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { REAL(pwrite); WRITTEN(fd, data, size, at, 1) return real(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { REAL(pwrite64); WRITTEN(fd, data, size, at, 1) return real(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int count) { REAL(writev); if (fd > 2 && before_fd("write", fd, ROOM)) return -1; return real(fd, parts, count); }

ssize_t sendfile(int to, int from, off_t *at, size_t size) { REAL(sendfile); if (before_fd("write", to, ROOM)) return -1; return real(to, from, at, size); }
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) { REAL(sendfile64); if (before_fd("write", to, ROOM)) return -1; return real(to, from, at, size); }

int fsync(int fd) { REAL(fsync); if (before_fd("fsync", fd, NOTHING)) return -1; return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); if (before_fd("fsync", fd, NOTHING)) return -1; return real(fd); }
int ftruncate(int fd, off_t size) { REAL(ftruncate); if (before_fd("truncate", fd, WRITABLE)) return -1; return real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); if (before_fd("truncate", fd, WRITABLE)) return -1; return real(fd, size); }
int truncate(const char *path, off_t size) { REAL(truncate); if (before("truncate", path, WRITABLE)) return -1; return real(path, size); }
int posix_fallocate(int fd, off_t at, off_t size) { REAL(posix_fallocate); if (before_fd("allocate", fd, ROOM)) return errno; return real(fd, at, size); }
int rename(const char *from, const char *to) { REAL(rename); if (before("rename", to, WRITABLE)) return -1; return real(from, to); }
int renameat(int a, const char *from, int b, const char *to) { REAL(renameat); if (before("rename", to, WRITABLE)) return -1; return real(a, from, b, to); }
int unlink(const char *path) { REAL(unlink); if (before("unlink", path, WRITABLE)) return -1; return real(path); }
int rmdir(const char *path) { REAL(rmdir); if (before("rmdir", path, WRITABLE)) return -1; return real(path); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); if (before("mkdir", path, ROOM)) return -1; return real(path, mode); }
int link(const char *from, const char *to) { REAL(link); if (before("link", to, ROOM)) return -1; return real(from, to); }

/* unlinkat and friends take names in a folder that a descriptor stands for (shutil.rmtree) */
int unlinkat(int at, const char *path, int flags) {
    REAL(unlinkat);
    char folder[PATH_MAX];
    struct control *c = path[0] == '/' || at == AT_FDCWD ? NULL : chosen_fd(at, folder);
    if (c) {
        if (counted(c, folder)) wait_here(c, "unlink", folder);
        if (refused(c, WRITABLE, "unlink", folder)) return -1;
    } else if (before("unlink", path, WRITABLE)) return -1;
    return real(at, path, flags);
}

int clock_gettime(clockid_t which, struct timespec *found) {
    REAL(clock_gettime);
    int status = real(which, found);
    struct control *c = which == CLOCK_REALTIME && status == 0 ? control() : NULL;
    if (c) found->tv_sec += c->clock;
    return status;
}

int gettimeofday(struct timeval *restrict found, void *restrict zone) {
    REAL(gettimeofday);
    int status = real(found, zone);
    struct control *c = status == 0 ? control() : NULL;
    if (c) found->tv_sec += c->clock;
    return status;
}

time_t time(time_t *found) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (found) *found = now.tv_sec;
    return now.tv_sec;
}
