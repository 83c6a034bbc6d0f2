/* Faults of a disk, and kills, at exact places: a library that stands in front of libc (LD_PRELOAD).

   Calls that change a file below a folder are counted; the first to the last of those asked for meet what the environment says.
   It is read at the first call that finds it, so that a fork of a process that ran without a fault can have one:

     FAULT_BELOW   the folder
     FAULT_CALLS   names of calls, with a space behind each; empty: all
     FAULT_NAME    pattern of the path below the folder, whose * takes slashes too
     FAULT_FIRST   number of the first call that meets the fault, from 1; FAULT_LAST: of the last
     FAULT_DOES    kill        SIGKILL in front of the call
                   kill-after  SIGKILL behind it
                   kill-half   SIGKILL when half of what is to be written is
                   fail        FAULT_ERRNO, and nothing is done
                   short       half of what is to be written is, which is no error
                   full        short at the first call, then fail: so a disk fills up
                   slow        FAULT_MILLISECONDS later
                   signal      signal FAULT_SIGNAL to process FAULT_PROCESS; 0: to itself
     FAULT_TRACE   a file to which every counted call adds a line: name of the call, space, path below the folder */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, KILL, KILL_AFTER, KILL_HALF, FAIL, SHORT, FULL, SLOW, SIGNAL, ACTIONS };
static const char *const names[ACTIONS] = {"nothing", "kill", "kill-after", "kill-half", "fail", "short", "full", "slow", "signal"};

static atomic_int armed;
static atomic_long count;
static int action, error, signal_number, process, trace = -1;
static long first, last, milliseconds;
static char below[PATH_MAX], calls[256], pattern[PATH_MAX];

static const char *variable(const char *name) {
  const char *value = getenv(name);
  return value ? value : "";
}

static int is_armed(void) {
  static pthread_mutex_t reading = PTHREAD_MUTEX_INITIALIZER;
  if (atomic_load(&armed)) return 1;
  if (!getenv("FAULT_BELOW")) return 0;
  pthread_mutex_lock(&reading);
  if (!atomic_load(&armed)) {
    snprintf(below, sizeof below, "%s/", variable("FAULT_BELOW"));
    snprintf(calls, sizeof calls, "%s", variable("FAULT_CALLS"));
    snprintf(pattern, sizeof pattern, "%s", variable("FAULT_NAME"));
    first = atol(variable("FAULT_FIRST"));
    last = atol(variable("FAULT_LAST"));
    error = atoi(variable("FAULT_ERRNO"));
    signal_number = atoi(variable("FAULT_SIGNAL"));
    process = atoi(variable("FAULT_PROCESS"));
    milliseconds = atol(variable("FAULT_MILLISECONDS"));
    for (int known = 0; known < ACTIONS; known++)
      if (!strcmp(names[known], variable("FAULT_DOES"))) action = known;
    if (*variable("FAULT_TRACE"))
      trace = syscall(SYS_openat, AT_FDCWD, variable("FAULT_TRACE"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    atomic_store(&armed, 1);
  }
  pthread_mutex_unlock(&reading);
  return 1;
}

static void killed(void) {
  syscall(SYS_kill, getpid(), SIGKILL);
  pause();
}

/* What this call of a path meets. */
static int met(const char *call, const char *path) {
  char called[32];
  snprintf(called, sizeof called, "%s ", call);
  if (strncmp(path, below, strlen(below)) || (*calls && !strstr(calls, called))) return NOTHING;
  if (fnmatch(pattern, path + strlen(below), 0)) return NOTHING;
  long number = atomic_fetch_add(&count, 1) + 1;
  if (trace >= 0) dprintf(trace, "%s %s\n", call, path + strlen(below));
  if (number < first || number > last) return NOTHING;
  if (action == KILL) killed();
  if (action == SLOW) usleep(1000 * milliseconds);
  if (action == SIGNAL) syscall(SYS_kill, process ? process : getpid(), signal_number);
  if (action == FULL) return number == first ? SHORT : FAIL;
  return action;
}

static int met_by_path(const char *call, int folder, const char *path) {
  int before = errno, found = NOTHING;
  char at[PATH_MAX] = "", whole[2 * PATH_MAX + 1], link[64];
  if (!is_armed() || !path) return NOTHING;
  if (*path == '/') {
    snprintf(whole, sizeof whole, "%s", path);
  } else {
    if (folder == AT_FDCWD) {
      if (!getcwd(at, sizeof at)) at[0] = 0;
    } else {
      snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
      ssize_t size = readlink(link, at, sizeof at - 1);
      at[size < 0 ? 0 : size] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", at, path);
  }
  found = met(call, whole);
  errno = before;
  return found;
}

static int met_by_descriptor(const char *call, int descriptor) {
  int before = errno;
  char path[PATH_MAX], link[64];
  if (!is_armed()) return NOTHING;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t size = readlink(link, path, sizeof path - 1);
  path[size < 0 ? 0 : size] = 0;
  int found = met(call, path);
  errno = before;
  return found;
}

#define REAL(name)                                                   \
  static __typeof__(&name) real;                                     \
  if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)
#define REFUSE                                                       \
  if (found == FAIL) {                                               \
    errno = error;                                                   \
    return -1;                                                       \
  }
#define RETURN(value)                                                \
  if (found == KILL_AFTER || found == KILL_HALF) killed();           \
  return value

#define BY_PATH(call, folder, path, does)                            \
  int found = met_by_path(call, folder, path);                       \
  REFUSE                                                             \
  __typeof__(does) result = does;                                    \
  RETURN(result);

#define BY_DESCRIPTOR(call, descriptor, does)                        \
  int found = met_by_descriptor(call, descriptor);                   \
  REFUSE                                                             \
  __typeof__(does) result = does;                                    \
  RETURN(result);

#define HALF(size) (found == KILL_HALF || (found == SHORT && size > 1) ? size / 2 : size)

/* Opening is counted where it may change something. */
#define OPEN(name, folder, parameters, arguments)                    \
  int name parameters {                                              \
    REAL(name);                                                      \
    mode_t mode = 0;                                                 \
    if (flags & (O_CREAT | __O_TMPFILE)) {                           \
      va_list list;                                                  \
      va_start(list, flags);                                         \
      mode = va_arg(list, mode_t);                                   \
      va_end(list);                                                  \
    }                                                                \
    if ((flags & O_ACCMODE) == O_RDONLY && !(flags & O_CREAT)) return real arguments; \
    BY_PATH("open", folder, path, real arguments)                    \
  }
OPEN(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))
OPEN(openat64, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))

ssize_t write(int file, const void *bytes, size_t size) {
  REAL(write);
  BY_DESCRIPTOR("write", file, real(file, bytes, HALF(size)))
}
ssize_t pwrite(int file, const void *bytes, size_t size, off_t offset) {
  REAL(pwrite);
  BY_DESCRIPTOR("write", file, real(file, bytes, HALF(size), offset))
}
ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t offset) {
  REAL(pwrite64);
  BY_DESCRIPTOR("write", file, real(file, bytes, HALF(size), offset))
}
ssize_t writev(int file, const struct iovec *parts, int number) {
  REAL(writev);
  BY_DESCRIPTOR("write", file, real(file, parts, HALF(number)))
}
int fsync(int file) { REAL(fsync); BY_DESCRIPTOR("fsync", file, real(file)) }
int fdatasync(int file) { REAL(fdatasync); BY_DESCRIPTOR("fsync", file, real(file)) }
int ftruncate(int file, off_t size) { REAL(ftruncate); BY_DESCRIPTOR("truncate", file, real(file, size)) }
int ftruncate64(int file, off64_t size) { REAL(ftruncate64); BY_DESCRIPTOR("truncate", file, real(file, size)) }
int truncate(const char *path, off_t size) { REAL(truncate); BY_PATH("truncate", AT_FDCWD, path, real(path, size)) }
int truncate64(const char *path, off64_t size) { REAL(truncate64); BY_PATH("truncate", AT_FDCWD, path, real(path, size)) }
int chmod(const char *path, mode_t mode) { REAL(chmod); BY_PATH("chmod", AT_FDCWD, path, real(path, mode)) }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); BY_PATH("mkdir", AT_FDCWD, path, real(path, mode)) }
int mkdirat(int folder, const char *path, mode_t mode) { REAL(mkdirat); BY_PATH("mkdir", folder, path, real(folder, path, mode)) }
int unlink(const char *path) { REAL(unlink); BY_PATH("unlink", AT_FDCWD, path, real(path)) }
int unlinkat(int folder, const char *path, int flags) { REAL(unlinkat); BY_PATH("unlink", folder, path, real(folder, path, flags)) }
int rmdir(const char *path) { REAL(rmdir); BY_PATH("unlink", AT_FDCWD, path, real(path)) }
int link(const char *from, const char *path) { REAL(link); BY_PATH("rename", AT_FDCWD, path, real(from, path)) }
int rename(const char *from, const char *path) { REAL(rename); BY_PATH("rename", AT_FDCWD, path, real(from, path)) }
int renameat(int here, const char *from, int folder, const char *path) {
  REAL(renameat);
  BY_PATH("rename", folder, path, real(here, from, folder, path))
}
int renameat2(int here, const char *from, int folder, const char *path, unsigned flags) {
  REAL(renameat2);
  BY_PATH("rename", folder, path, real(here, from, folder, path, flags))
}
