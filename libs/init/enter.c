/* enter.c: berth-enter, what the agent executes to start the OCI runtime.
 *
 *   berth-enter [option ...] -- PROGRAM ARG ...
 *
 * Makes a private mount namespace, carries out the options in the order given, and executes PROGRAM in it. What
 * is mounted here exists in that namespace alone, so it is gone when the last process of the sandbox is: nothing
 * has to be unmounted, whatever dies first. Host mounts made later are not seen either (all is private).
 *
 *   --umount PATH                  detach a mount (the cgroup2 tree of a "hybrid" host)
 *   --idmap INSIDE:OUTSIDE:COUNT   ids of later --lower mounts are shifted so (repeatable)
 *   --lower SRC DEST               SRC read-only at DEST, idmapped; DEST becomes the next overlay's lower layer
 *   --overlay TARGET UPPER WORK    overlay of the lowers given so far, topmost first, and starts a new list
 *   --overlay-ro TARGET            the same without an upper
 *   --volume SRC DEST              SRC at DEST for writing, idmapped
 *   --file DEST UID GID MODE N     a file system in memory at DEST with one file, `content`: the next N bytes of stdin
 *   --listen PATH                  listening unix socket at PATH, mode 0600, as fd 3 of PROGRAM
 *   --chdir PATH                   enter a directory
 *   --seal                         execute PROGRAM from a sealed copy in memory
 *
 * Its own failures: one line `berth-enter: STEP: PATH: ERROR` on stderr, exit code 120; 121 where an overlay with an
 * upper came up read-only, which it does without an error when nothing can be written there (a quota is full). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FAILED = 120, READ_ONLY = 121, LISTEN_FD = 3, BACKLOG = 8, MAX_IDMAPS = 64, MAX_LOWERS = 500 /* overlayfs' own limit */ };

/* linux/mount.h and the system call numbers of the new mount API (the same on all architectures since 5.2). */
enum {
  NR_OPEN_TREE = 428, NR_MOVE_MOUNT = 429, NR_FSOPEN = 430, NR_FSCONFIG = 431, NR_FSMOUNT = 432,
  NR_MOUNT_SETATTR = 442,
};
enum {
  CLONE_TREE = 1, FROM_EMPTY = 4, OPEN_CLOEXEC = 1, SET_FLAG = 0, SET_STRING = 1, CREATE = 6,
  ATTR_RDONLY = 0x1, ATTR_NOSUID = 0x2, ATTR_NODEV = 0x4, ATTR_IDMAP = 0x100000,
};
struct mount_attributes { uint64_t set, clear, propagation, userns_fd; };

static struct { unsigned inside, outside, count; } idmaps[MAX_IDMAPS];
static int nidmaps, userns = -1;
static const char *lowers[MAX_LOWERS];
static int nlowers;

static _Noreturn void fail(const char *step, const char *path) {
  const char *hint = "";
  if (strcmp(step, "idmap") == 0 && (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP))
    hint = " (this kernel or filesystem has no idmapped mounts)";
  int code = strcmp(step, "overlay") == 0 && errno == EROFS ? READ_ONLY : FAILED;
  fprintf(stderr, "berth-enter: %s: %s: %s%s\n", step, path, strerror(errno), hint);
  exit(code);
}

static _Noreturn void misuse(const char *what, const char *argument) {
  errno = EINVAL;
  fail(what, argument);
}

static void write_file(pid_t pid, const char *name, const char *text, size_t len) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, text, len) != (ssize_t)len) fail("idmap", path);
  close(fd);
}

static void add_idmap(const char *text) {
  unsigned inside, outside, count;
  char rest;
  if (sscanf(text, "%u:%u:%u%c", &inside, &outside, &count, &rest) != 3 || count == 0)
    misuse("idmap: not INSIDE:OUTSIDE:COUNT", text);
  if (nidmaps == MAX_IDMAPS || userns >= 0) misuse("idmap: too many, or after --lower", text);
  idmaps[nidmaps].inside = inside;
  idmaps[nidmaps].outside = outside;
  idmaps[nidmaps++].count = count;
}

/* A user namespace lives as long as a process or an fd is in it: a child makes one, waits on a pipe to be
 * mapped and held, and goes. On disk ids are natural, so the map from disk to mount is the one from inside to
 * outside. */
static int make_userns(void) {
  int ready[2], hold[2];
  char byte, map[MAX_IDMAPS * 36], path[64];
  size_t len = 0;
  if (pipe2(ready, O_CLOEXEC) < 0 || pipe2(hold, O_CLOEXEC) < 0) fail("idmap", "pipe");
  pid_t pid = fork();
  if (pid < 0) fail("idmap", "fork");
  if (pid == 0) {
    close(hold[1]);
    if (unshare(CLONE_NEWUSER) < 0 || write(ready[1], "", 1) != 1) _exit(errno);
    _exit(read(hold[0], &byte, 1) < 0);   /* end of file: the parent is done, or dead */
  }
  close(ready[1]);
  close(hold[0]);
  if (read(ready[0], &byte, 1) != 1) {
    int status = 0;
    waitpid(pid, &status, 0);
    errno = WEXITSTATUS(status);
    fail("idmap", "unshare");
  }
  for (int i = 0; i < nidmaps; i++)
    len += (size_t)snprintf(map + len, sizeof map - len, "%u %u %u\n", idmaps[i].inside, idmaps[i].outside, idmaps[i].count);
  write_file(pid, "uid_map", map, len);
  write_file(pid, "gid_map", map, len);
  snprintf(path, sizeof path, "/proc/%d/ns/user", (int)pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail("idmap", path);
  close(hold[1]);
  close(ready[0]);
  waitpid(pid, NULL, 0);
  return fd;
}

static void set_attributes(const char *step, int tree, const char *path, struct mount_attributes a) {
  if (syscall(NR_MOUNT_SETATTR, tree, "", AT_EMPTY_PATH, &a, sizeof a) < 0) fail(step, path);
}

static void attach(const char *step, int mount, const char *at) {
  if (syscall(NR_MOVE_MOUNT, mount, "", AT_FDCWD, at, FROM_EMPTY) < 0) fail(step, at);
  close(mount);
}

/* A detached copy of one mount. */
static int clone_of(const char *step, const char *source, uint64_t attributes) {
  int tree = (int)syscall(NR_OPEN_TREE, AT_FDCWD, source, CLONE_TREE | O_CLOEXEC);
  if (tree < 0) fail(step, source);
  set_attributes(step, tree, source, (struct mount_attributes){.set = attributes});
  return tree;
}

/* Set-uid binaries must go on working inside, so no nosuid. */
static int read_only_clone(const char *step, const char *source) {
  return clone_of(step, source, ATTR_RDONLY | ATTR_NODEV);
}

static void shift_ids(int tree, const char *source) {
  if (nidmaps == 0) return;
  if (userns < 0) userns = make_userns();
  set_attributes("idmap", tree, source, (struct mount_attributes){.set = ATTR_IDMAP, .userns_fd = (uint64_t)userns});
}

static void mount_lower(const char *source, const char *at) {
  if (nlowers == MAX_LOWERS) misuse("lower: too many", source);
  int tree = read_only_clone("lower", source);
  shift_ids(tree, source);
  attach("lower", tree, at);
  lowers[nlowers++] = at;
}

static void mount_volume(const char *source, const char *at) {
  int tree = clone_of("volume", source, ATTR_NODEV | ATTR_NOSUID);
  shift_ids(tree, source);
  attach("volume", tree, at);
}

/* The options that Docker and containerd give: layers are shared and read by tar-like tools, so nothing may be
 * kept in extended attributes that only this overlay understands. */
static const char *const overlay_options[][2] = {
  {"index", "off"}, {"metacopy", "off"}, {"redirect_dir", "off"}, {"xino", "off"},
};
enum { OVERLAY_OPTIONS = sizeof overlay_options / sizeof *overlay_options };

/* Appends key=value to mount(2)'s option string, with a backslash before each of `special`. */
static char *append(char *at, const char *end, const char *key, const char *value, const char *special) {
  for (const char *c = key; *c && at < end; c++) *at++ = *c;
  for (; *value && at + 1 < end; value++) {
    if (strchr(special, *value)) *at++ = '\\';
    *at++ = *value;
  }
  return at;
}

/* Before Linux 6.5: all lowers in one string, and that in the one page that mount(2) takes. */
static void mount_overlay_by_string(const char *at, const char *upper, const char *work) {
  static char text[4096];
  char *t = text, *end = text + sizeof text - 1;
  for (int i = 0; i < nlowers; i++) t = append(t, end, i ? ":" : "lowerdir=", lowers[i], ":,\\");
  if (upper) {
    t = append(t, end, ",upperdir=", upper, ",\\");
    t = append(t, end, ",workdir=", work, ",\\");
  }
  for (int i = 0; i < OVERLAY_OPTIONS; i++) {
    t = append(t, end, ",", overlay_options[i][0], "");
    t = append(t, end, "=", overlay_options[i][1], "");
  }
  if (t + 1 >= end) misuse("overlay: paths longer than this kernel takes (4095 bytes)", at);
  if (mount("berth", at, "overlay", (unsigned long)MS_NODEV | (upper ? 0 : MS_RDONLY), text) < 0) fail("overlay", at);
}

static void configure(int fs, const char *key, const char *value) {
  if (syscall(NR_FSCONFIG, fs, SET_STRING, key, value, 0) < 0) fail("overlay", value);
}

/* `lowerdir+` (Linux 6.5) takes one path a call, of any bytes. The other build is for testing the fallback. */
static bool takes_lowers_singly(int fs) {
#ifdef BERTH_OVERLAY_BY_STRING
  (void)fs;
  return false;
#else
  return syscall(NR_FSCONFIG, fs, SET_STRING, "lowerdir+", lowers[0], 0) == 0;
#endif
}

static void mount_overlay(const char *at, const char *upper, const char *work) {
  if (nlowers == 0) misuse("overlay: no --lower before", at);
  int fs = (int)syscall(NR_FSOPEN, "overlay", OPEN_CLOEXEC);
  if (fs < 0) fail("overlay", "fsopen");
  if (takes_lowers_singly(fs)) {
    for (int i = 1; i < nlowers; i++) configure(fs, "lowerdir+", lowers[i]);
    configure(fs, "source", "berth");
    if (upper) {
      configure(fs, "upperdir", upper);
      configure(fs, "workdir", work);
    }
    for (int i = 0; i < OVERLAY_OPTIONS; i++) configure(fs, overlay_options[i][0], overlay_options[i][1]);
    if (syscall(NR_FSCONFIG, fs, CREATE, NULL, NULL, 0) < 0) fail("overlay", at);
    int tree = (int)syscall(NR_FSMOUNT, fs, OPEN_CLOEXEC, ATTR_NODEV | (upper ? 0 : ATTR_RDONLY));
    if (tree < 0) fail("overlay", at);
    attach("overlay", tree, at);
  } else {
    mount_overlay_by_string(at, upper, work);
  }
  close(fs);
  nlowers = 0;
}

static void check_writable(const char *at) {
  struct statvfs found;
  if (statvfs(at, &found) < 0) fail("overlay", at);
  errno = EROFS;
  if (found.f_flag & ST_RDONLY) fail("overlay", at);
}

/* An overlay without upper needs two lowers; one is a bind mount already. */
static void mount_read_only(const char *at) {
  if (nlowers != 1) {
    mount_overlay(at, NULL, NULL);
    return;
  }
  attach("overlay-ro", read_only_clone("overlay-ro", lowers[0]), at);
  nlowers = 0;
}

static unsigned long number(const char *text, int base) {
  char *end;
  errno = 0;
  unsigned long value = strtoul(text, &end, base);
  if (errno != 0 || *text < '0' || *text > '9' || *end || value > UINT32_MAX) misuse("not a number", text);
  return value;
}

/* In memory and in this namespace only: it is on no disk, in no directory of the host, and gone with the sandbox. Its
 * bytes come by stdin, since they may be a secret, and arguments are seen by everybody. Without `noswap` (before Linux 6.4) it may be swapped. */
static void mount_file(const char *at, char **how) {
  unsigned long uid = number(how[0], 10), gid = number(how[1], 10), mode = number(how[2], 8), left = number(how[3], 10);
  char text[64], buffer[4096], path[PATH_MAX];
  unsigned long flags = MS_NOSUID | MS_NODEV;
  snprintf(text, sizeof text, "mode=711,nr_inodes=4,size=%lu,noswap", left + 65536);
  if (mount("berth", at, "tmpfs", flags, text) < 0) {
    *strrchr(text, ',') = 0;
    if (errno != EINVAL || mount("berth", at, "tmpfs", flags, text) < 0) fail("file", at);
  }
  snprintf(path, sizeof path, "%s/content", at);
  int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0);
  if (file < 0 || fchown(file, (uid_t)uid, (gid_t)gid) < 0 || fchmod(file, (mode_t)mode & 0777) < 0) fail("file", path);
  while (left > 0) {
    ssize_t n = read(STDIN_FILENO, buffer, left < sizeof buffer ? left : sizeof buffer);
    if (n == 0) errno = ENODATA;
    if (n <= 0 || write(file, buffer, (size_t)n) != n) fail("file", path);
    left -= (unsigned long)n;
  }
  explicit_bzero(buffer, sizeof buffer);
  close(file);
  if (mount(NULL, at, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, NULL) < 0) fail("file", at);
}

/* By its name in its own directory: sun_path has room for 107 bytes only. */
static void listen_at(const char *path) {
  char *dir = strdup(path), *base = strdup(path);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  int here = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (!dir || !base || here < 0 || chdir(dirname(dir)) < 0) fail("listen", path);
  const char *name = basename(base);
  if (strlen(name) >= sizeof address.sun_path) misuse("listen: name too long", path);
  memcpy(address.sun_path, name, strlen(name));
  if (unlink(name) < 0 && errno != ENOENT) fail("listen", path);
  mode_t before = umask(0177);
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, BACKLOG) < 0) fail("listen", path);
  umask(before);
  if (fd != LISTEN_FD && (dup2(fd, LISTEN_FD) < 0 || close(fd) < 0)) fail("listen", path);
  if (fchdir(here) < 0) fail("listen", path);
  close(here);
  free(dir);
  free(base);
}

/* fd 3 is the socket's. What the agent left open there by accident would otherwise be overwritten while in use. */
static void reserve_listen_fd(void) {
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0 || (null != LISTEN_FD && dup3(null, LISTEN_FD, O_CLOEXEC) < 0)) fail("listen", "/dev/null");
  if (null > LISTEN_FD) close(null);
}

/* A container must not be able to write to the runtime's binary through /proc/PID/exe, so crun mounts itself read-only
 * somewhere, and executes and links itself again; unless it finds that it runs from a sealed memfd. Copying half a
 * megabyte costs less than half of that. A file system without room for it, or a kernel that forbids it, leaves PROGRAM
 * to care for itself. */
static void exec_sealed(char **argv) {
  char path[4096];
  const char *dirs = getenv("PATH");
  int from = -1;
  if (strchr(argv[0], '/')) from = open(argv[0], O_RDONLY | O_CLOEXEC);
  for (; from < 0 && dirs && *dirs; dirs += strcspn(dirs, ":"), dirs += *dirs == ':') {
    int n = snprintf(path, sizeof path, "%.*s/%s", (int)strcspn(dirs, ":"), dirs, argv[0]);
    if (n > 0 && n < (int)sizeof path && access(path, X_OK) == 0) from = open(path, O_RDONLY | O_CLOEXEC);
  }
  struct stat st;
  if (from < 0 || fstat(from, &st) < 0 || !S_ISREG(st.st_mode)) return;
  int copy = memfd_create(argv[0], MFD_CLOEXEC | MFD_ALLOW_SEALING);
  for (off_t at = 0; copy >= 0 && at < st.st_size;)
    if (sendfile(copy, from, &at, (size_t)(st.st_size - at)) <= 0) return;
  if (copy >= 0 && fcntl(copy, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0)
    syscall(SYS_execveat, copy, "", argv, environ, AT_EMPTY_PATH);
}

static const struct { const char *name; int arguments; } options[] = {
  {"--umount", 1}, {"--idmap", 1}, {"--lower", 2}, {"--overlay", 3}, {"--overlay-ro", 1}, {"--volume", 2}, {"--file", 5},
  {"--listen", 1}, {"--chdir", 1}, {"--seal", 0},
};
enum { UMOUNT, IDMAP, LOWER, OVERLAY, OVERLAY_RO, VOLUME, FILE_IN_MEMORY, LISTEN, CHDIR, SEAL, OPTIONS };
static bool sealed;

static int option_of(const char *text) {
  int i = 0;
  while (i < OPTIONS && strcmp(text, options[i].name) != 0) i++;
  return i;
}

static void carry_out(int option, char **a) {
  switch (option) {
    case UMOUNT:
      if (umount2(a[0], MNT_DETACH) < 0) fail("umount", a[0]);
      break;
    case IDMAP: add_idmap(a[0]); break;
    case LOWER: mount_lower(a[0], a[1]); break;
    case OVERLAY: mount_overlay(a[0], a[1], a[2]); check_writable(a[0]); break;
    case OVERLAY_RO: mount_read_only(a[0]); break;
    case VOLUME: mount_volume(a[0], a[1]); break;
    case FILE_IN_MEMORY: mount_file(a[0], a + 1); break;
    case LISTEN: listen_at(a[0]); break;
    case SEAL: sealed = true; break;
    default:
      if (chdir(a[0]) < 0) fail("chdir", a[0]);
  }
}

int main(int argc, char **argv) {
  if (argc == 2 && strcmp(argv[1], "--version") == 0) return printf("berth-enter 1\n") < 0 ? FAILED : 0;
  reserve_listen_fd();
  if (unshare(CLONE_NEWNS) < 0) fail("unshare", "mount namespace");
  if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) fail("private", "/");
  int i = 1;
  while (i < argc && strcmp(argv[i], "--") != 0) {
    int option = option_of(argv[i]);
    if (option == OPTIONS) misuse("unknown option", argv[i]);
    if (i + options[option].arguments >= argc) misuse("option without its arguments", argv[i]);
    carry_out(option, argv + i + 1);
    i += 1 + options[option].arguments;
  }
  if (i + 1 >= argc) misuse("usage", "berth-enter [option ...] -- PROGRAM ARG ...");
  if (sealed) exec_sealed(argv + i + 1);
  execvp(argv[i + 1], argv + i + 1);
  fail("exec", argv[i + 1]);
}
