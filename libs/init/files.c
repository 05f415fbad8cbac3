/* files.c: berth-files, one operation on files of a sandbox, as a process in it.
 *
 *   berth-files OPERATION ARGUMENT ...
 *
 * It is started by berth-init with the ids and capabilities of the user whose rights count, in the sandbox's mount and
 * user namespaces. So the kernel decides what it may reach, a link leads where it leads in the sandbox, and nothing
 * here is trusted by anyone: the agent checks what it says as if the sandbox had said it (which may replace it).
 *
 * Answers are on stdout: records, bytes of a file, a tar. README.md has the operations, the records and the failures. */
#define _GNU_SOURCE
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { FAILED = 1, MISUSED = 2 };
enum { PIPE_BYTES = 1 << 20 };   /* what an unprivileged process may ask for by default (pipe(7)) */

/* ---- failures ---- */

/* Everything but visible ASCII as %XX, so that a path is one word whatever is in it. */
static size_t escape(const char *path, char *into, size_t room) {
  size_t n = 0;
  for (const unsigned char *c = (const unsigned char *)path; *c && n + 4 < room; c++)
    if (*c > ' ' && *c < 0x7f && *c != '%') into[n++] = (char)*c;
    else n += (size_t)snprintf(into + n, 4, "%%%02X", *c);
  into[n] = 0;
  return n;
}

_Noreturn void fail(const char *word, long long number, const char *path, const char *text) {
  static char line[3 * PATH_BYTES + 256], escaped[3 * PATH_BYTES];
  fresh_abandon();
  escape(path, escaped, sizeof escaped);
  int n = snprintf(line, sizeof line, "%s %lld %s %s\n", word, number, escaped, text);
  ssize_t told = write(2, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
  exit(told < 0 ? MISUSED : FAILED);
}

_Noreturn void fail_errno(const char *path) { fail("path", errno, path, ""); }

static _Noreturn void misuse(const char *what) {
  fail("usage", 0, what, "berth-files OPERATION ARGUMENT ...");
}

static void on_signal(int signo) {
  fresh_abandon();
  _exit(128 + signo);
}

/* ---- records ---- */

void put_text(const char *format, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  int n = vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  put(text, (size_t)n);
}

static char kind_of(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFREG: return 'f';
    case S_IFDIR: return 'd';
    case S_IFLNK: return 'l';
    case S_IFIFO: return 'p';
    case S_IFSOCK: return 's';
    case S_IFBLK: return 'b';
    default: return 'c';
  }
}

void put_stat(const struct stat *st, const char *name, const char *target) {
  put_text("stat %c %lld %o %u %u %llu %lld.%09ld %zu %zu\n", kind_of(st->st_mode), (long long)st->st_size,
           (unsigned)(st->st_mode & 07777), st->st_uid, st->st_gid, (unsigned long long)st->st_nlink,
           (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec, strlen(name), strlen(target));
  put(name, strlen(name));
  put(target, strlen(target));
}

/* False: it is gone. */
static bool put_entry(int dir, const char *name, const char *shown) {
  char target[PATH_BYTES] = "";
  struct stat st;
  if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0) return false;
  if (S_ISLNK(st.st_mode)) {
    ssize_t n = readlinkat(dir, name, target, sizeof target - 1);
    target[n < 0 ? 0 : n] = 0;
  }
  put_stat(&st, shown, target);
  return true;
}

static void answer_entry(int dir, const char *name, const char *path) {
  if (!put_entry(dir, name, "")) fail_errno(path);
}

/* ---- arguments ---- */

static bool is(const char *argument, const char *yes, const char *no) {
  if (strcmp(argument, yes) == 0) return true;
  if (strcmp(argument, no) != 0) misuse(argument);
  return false;
}

/* A number of `base`, or -1 for "-". */
static long long number(const char *argument, int base) {
  char *end;
  if (strcmp(argument, "-") == 0) return -1;
  errno = 0;
  long long n = strtoll(argument, &end, base);
  if (errno || end == argument || *end || n < 0) misuse(argument);
  return n;
}

static struct owner owner_of(char **a) { return (struct owner){(uid_t)number(a[0], 10), (gid_t)number(a[1], 10)}; }

/* ---- operations ---- */

/* stat PATH follow|nofollow */
static void op_stat(char **a) {
  struct stat st;
  if (is(a[1], "follow", "nofollow")) {
    if (stat(a[0], &st) < 0) fail_errno(a[0]);
    put_stat(&st, "", "");
    return;
  }
  struct place p = place_of(a[0], false);
  answer_entry(p.dir, p.name, a[0]);
}

/* list PATH: a record an entry; those that go away meanwhile are left out */
static void op_list(char **a) {
  DIR *d = opendir(a[0]);
  if (!d) fail_errno(a[0]);
  for (;;) {
    errno = 0;
    struct dirent *e = readdir(d);
    if (!e && errno) fail_errno(a[0]);
    if (!e) break;
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
    if (!put_entry(dirfd(d), e->d_name, e->d_name) && errno != ENOENT) fail_errno(a[0]);
  }
}

/* Only a regular file is ever opened: opening a FIFO waits, or wakes whoever waits on its other end. */
static int open_regular(const char *path, struct stat *st) {
  char again[32];
  int fd = open(path, O_PATH | O_CLOEXEC);
  if (fd < 0 || fstat(fd, st) < 0) fail_errno(path);
  errno = EISDIR;
  if (S_ISDIR(st->st_mode)) fail_errno(path);
  if (!S_ISREG(st->st_mode)) fail("kind", 0, path, "");
  snprintf(again, sizeof again, "/proc/self/fd/%d", fd);
  int opened = open(again, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (opened < 0) fail_errno(path);
  close(fd);
  return opened;
}

/* proc, sysfs, devpts, cgroup v1 and v2, mqueue, securityfs, debugfs, tracefs, bpf (linux/magic.h). */
bool of_kernel(int fd) {
  static const unsigned magic[] = {0x9fa0, 0x62656572, 0x1cd1, 0x27e0eb, 0x63677270, 0x19800202, 0x73636673, 0x64626720,
                                   0x74726163, 0xcafe4a11};
  struct statfs fs;
  if (fstatfs(fd, &fs) < 0) return false;
  for (size_t i = 0; i < sizeof magic / sizeof *magic; i++)
    if ((unsigned)fs.f_type == magic[i]) return true;
  return false;
}

/* read PATH FIRST LAST: bytes FIRST to LAST, "-" for LAST is to the end; "-" for FIRST is the last LAST bytes. */
static void op_read(char **a) {
  static char chunk[CHUNK];
  long long first = number(a[1], 10), last = number(a[2], 10);
  bool whole = first < 0 && last < 0;
  struct stat st;
  int fd = open_regular(a[0], &st);
  long long size = st.st_size;
  if (of_kernel(fd)) {   /* its size means nothing: 0 or a page, whatever there is to read */
    put_text("read -1 0 -1\n");
    for (size_t n; (n = take(fd, chunk, sizeof chunk, a[0])) > 0; ) put(chunk, n);
    return;
  }
  if (first < 0) {   /* the last so many, of which there are none */
    first = whole ? 0 : last < size ? size - last : 0;
    last = -1;
  }
  if (last < 0 || last >= size) last = size - 1;
  if (first > last && !whole) fail("range", size, a[0], "");
  put_text("read %lld %lld %lld\n", size, first, last - first + 1);
  flush();
  if (lseek(fd, first, SEEK_SET) < 0) fail_errno(a[0]);
  posix_fadvise(fd, first, last - first + 1, POSIX_FADV_SEQUENTIAL);
  for (long long left = last - first + 1; left > 0; ) {
    size_t want = left < CHUNK ? (size_t)left : CHUNK, n = take(fd, chunk, want, a[0]);
    if (n == 0) fail("short", 0, a[0], "");   /* more was promised */
    if (!give(1, chunk, n)) fail_errno("stdout");
    left -= (long long)n;
  }
}

static void set_owner(int fd, struct owner wanted, const struct target *t, const char *path) {
  if (wanted.uid != (uid_t)-1) {
    if (fchown(fd, wanted.uid, wanted.gid) < 0) fail_errno(path);
  } else if (t->exists && fchown(fd, t->st.st_uid, t->st.st_gid) < 0 && errno != EPERM) {
    fail_errno(path);   /* who may not give it away keeps it, as with any editor that replaces files */
  }
}

/* write PATH MODE UID GID parents|- replace|fail: stdin to its end; MODE and ids "-": those of the file there. Whoever
 * does not want what was sent so far must kill this process instead of ending stdin. */
static void op_write(char **a) {
  static char chunk[CHUNK];
  bool replace = is(a[5], "replace", "fail");
  long long mode = number(a[1], 8);
  struct owner owner = owner_of(a + 2);
  struct stat st;
  errno = EEXIST;
  if (!replace && lstat(a[0], &st) == 0) fail("path", EEXIST, a[0], "");
  struct target t = follow(a[0], is(a[4], "parents", "-"));
  errno = EISDIR;
  if (t.exists && S_ISDIR(t.st.st_mode)) fail_errno(a[0]);
  if (t.exists && !S_ISREG(t.st.st_mode)) fail("kind", 0, a[0], "");
  int fd = fresh_begin(t.at.dir, a[0]);
  for (size_t n; (n = take(0, chunk, sizeof chunk, "stdin")) > 0; )
    if (!give(fd, chunk, n)) fail_errno(a[0]);
  set_owner(fd, owner, &t, a[0]);
  if (fchmod(fd, mode >= 0 ? (mode_t)mode : t.exists ? t.st.st_mode & 07777 : 0644) < 0) fail_errno(a[0]);
  int dir = *t.missing ? make_directories(dup(t.at.dir), t.missing, owner, a[0]) : t.at.dir;
  fresh_commit(dir, t.at.name, replace, a[0]);
  answer_entry(dir, t.at.name, a[0]);
}

/* mkdir PATH MODE parents|-: with parents a directory that is there is fine */
static void op_mkdir(char **a) {
  struct stat st;
  long long mode = number(a[1], 8);
  bool parents = is(a[2], "parents", "-");
  struct place p = place_of(a[0], parents);
  mode_t wanted = mode < 0 ? 0755 : (mode_t)mode;
  if (mkdirat(p.dir, p.name, wanted) == 0) {
    /* mkdir(2) itself sets no set-id bits. */
    if ((wanted & 06000) && fchmodat(p.dir, p.name, wanted, 0) < 0) fail_errno(a[0]);
  } else if (errno != EEXIST || !parents) {
    fail_errno(a[0]);
  }
  if (fstatat(p.dir, p.name, &st, 0) < 0) fail_errno(a[0]);
  if (!S_ISDIR(st.st_mode)) fail("path", EEXIST, a[0], "");
  put_stat(&st, "", "");
}

/* rename FROM TO replace|fail */
static void op_rename(char **a) {
  struct place from = place_of(a[0], false), to = place_of(a[1], false);
  bool replace = is(a[2], "replace", "fail");
  int done = replace ? renameat(from.dir, from.name, to.dir, to.name)
                     : rename_exclusive(from.dir, from.name, to.dir, to.name);
  bool about_target = errno == EEXIST || errno == ENOTEMPTY || errno == EISDIR || errno == ENOTDIR;
  if (done < 0) fail_errno(a[about_target ? 1 : 0]);
  answer_entry(to.dir, to.name, a[1]);
}

/* remove PATH recursive|-: a link itself, never what it leads to */
static void op_remove(char **a) {
  struct place p = place_of(a[0], false);
  struct stat st;
  bool recursive = is(a[1], "recursive", "-");
  if (fstatat(p.dir, p.name, &st, AT_SYMLINK_NOFOLLOW) < 0) fail_errno(a[0]);
  if (strcmp(p.name, ".") == 0) fail("path", EBUSY, a[0], "");   /* "/", or a directory by its ".." */
  if (!S_ISDIR(st.st_mode)) {
    if (unlinkat(p.dir, p.name, 0) < 0) fail_errno(a[0]);
  } else if (recursive) {
    remove_tree(p.dir, p.name, a[0]);
  } else if (unlinkat(p.dir, p.name, AT_REMOVEDIR) < 0) {
    fail_errno(a[0]);
  }
}

/* watch PATH recursive|- */
static void op_watch(char **a) { watch(a[0], is(a[1], "recursive", "-")); }

/* pack PATH */
static void op_pack(char **a) { pack(a[0]); }

/* unpack PATH archive|user UID GID: a tar on stdin, into a directory; whose the files are, and with `user` by id */
static void op_unpack(char **a) {
  struct unpacked u = unpack(a[0], is(a[1], "archive", "user"), owner_of(a + 2));
  put_text("unpacked %llu %llu\n", u.entries, u.bytes);
}

static const struct { const char *name; int arguments; void (*run)(char **a); } operations[] = {
  {"stat", 2, op_stat}, {"list", 1, op_list}, {"read", 3, op_read}, {"write", 6, op_write}, {"mkdir", 3, op_mkdir},
  {"rename", 3, op_rename}, {"remove", 2, op_remove}, {"watch", 2, op_watch}, {"pack", 1, op_pack},
  {"unpack", 4, op_unpack},
};

#ifdef __SANITIZE_ADDRESS__
/* One operation and out: memory goes with the process. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; }
#endif

int main(int argc, char **argv) {
  static const int ending[] = {SIGTERM, SIGINT, SIGHUP, SIGPIPE};
  for (size_t i = 0; i < sizeof ending / sizeof *ending; i++) signal(ending[i], on_signal);
  signal(SIGXFSZ, SIG_IGN);   /* EFBIG says it better */
  umask(0);
  if (argc == 2 && strcmp(argv[1], "--version") == 0) return printf("berth-files 1\n") < 0;
  if (argc < 2) misuse("");
  /* Fewer and longer turns for all three of writer, berth-init and agent; without it works too. */
  fcntl(0, F_SETPIPE_SZ, PIPE_BYTES);
  fcntl(1, F_SETPIPE_SZ, PIPE_BYTES);
  for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
    if (strcmp(argv[1], operations[i].name) != 0) continue;
    if (argc != 2 + operations[i].arguments) misuse(argv[1]);
    operations[i].run(argv + 2);
    flush();
    return 0;
  }
  misuse(argv[1]);
}
