/* layer.c: berth-layer, one image layer from a tar on stdin to a directory that overlayfs takes as a lower one, and back.
 *
 *   berth-layer [--group GROUP]... DIRECTORY MAX-BYTES MAX-WITH-HOLES MAX-ENTRIES [unsynced]
 *   berth-layer [--group GROUP]... pack UPPER BASE COUNT MAX-BYTES MAX-ENTRIES [--newest SECONDS] [--without PATH]...
 *                                  [--stub PATH]... [--lower LOWER]...
 *
 * GROUP is the directory of a control group, of each hierarchy one, that the process moves into before anything else; in
 * one it is also the first to go when the memory of that, or of one above it, is used up.
 *
 * DIRECTORY is empty and nobody else's. Holes of sparse files stay holes: they are nothing of MAX-BYTES, and whoever reads
 * them finds no more than MAX-WITH-HOLES, with all else in files. On success: `ENTRIES BYTES` on stdout, and everything is on disk, unless it is
 * `unsynced`. A failure is one line on stderr and an exit code: 3 the layer is refused, 4 no room, 5 more than MAX-BYTES,
 * 1 anything else.
 *
 * `pack` writes the upper directory of an overlay, whose owners are shifted by BASE, as the tar of a layer (upper.c).
 * What is at --without PATH is left out, and what is at --stub PATH where that is an empty file or directory, as the
 * mount points are that a runtime makes. Later times become --newest. With LOWER, topmost first, it is all that is seen
 * of the overlay instead. Failures as above; what came on stdout is nothing then.
 *
 * Layers come from anywhere. The process is confined to DIRECTORY by chroot(2) before it reads a byte, and no link is
 * followed on the way to an entry. Whiteouts become what overlayfs knows (overlayfs.rst, "whiteouts and opaque
 * directories"); those, and what an archive says of trusted.*, can be made by nothing else in it. Owners are the image's
 * own: they are shifted into a tenant's range when the layer is mounted. */
#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { FAILED = 1, MISUSED = 2, REFUSED = 3, NO_ROOM = 4, TOO_LARGE = 5 };
enum { MAX_MEMORY = 512 << 20 };   /* names are all that is kept: of directories, or of those of the largest one */

static const char USAGE[] = "berth-layer [--group GROUP]... DIRECTORY MAX-BYTES MAX-WITH-HOLES MAX-ENTRIES [unsynced] | "
                            "pack UPPER BASE COUNT MAX-BYTES MAX-ENTRIES [--newest SECONDS] [--without PATH]... "
                            "[--stub PATH]... [--lower LOWER]...";
static const char WHITEOUT[] = ".wh.", METADATA[] = ".wh..wh.", OPAQUE[] = ".wh..wh..opq";

/* A directory whose time is set in the end: each new entry changes it. */
struct late { char *path; struct timespec mtime; };

static struct {
  int root;
  uint64_t max_bytes, bytes, max_with_holes, with_holes, entries, directories;
  struct late *late;
  size_t nlate, late_room;
  /* The directory of the last entry: archives are mostly in order. "" is the root. */
  int dir;
  char *dir_path;
  int fd;                    /* the file being written, or -1 */
  const char *shown;         /* the entry at hand */
} to = {.fd = -1, .shown = ""};

/* ---- failures ---- */

static _Noreturn void leave(int code, const char *path, const char *text) {
  static char line[1024];
  char *at = line;
  for (const unsigned char *c = (const unsigned char *)path; *c && at < line + 512; c++)
    if (*c > ' ' && *c < 0x7f && *c != '%') *at++ = (char)*c;
    else at += snprintf(at, 4, "%%%02X", *c);
  int n = snprintf(at, sizeof line - (size_t)(at - line), "%s%s\n", at > line ? ": " : "", text);
  ssize_t told = write(2, line, (size_t)(at - line) + (size_t)n);
  _exit(told < 0 ? FAILED : code);
}

_Noreturn void fail(const char *word, long long number, const char *path, const char *text) {
  if (strcmp(word, "archive") == 0) leave(REFUSED, path, text);
  if (number == ENOMEM) leave(REFUSED, path, "it takes too much memory");
  if (number == ENOSPC || number == EDQUOT) leave(NO_ROOM, path, strerror((int)number));
  /* Names that the kernel does not take are the archive's matter. */
  if (number == ENAMETOOLONG || number == EILSEQ || number == EMLINK) leave(REFUSED, path, strerror((int)number));
  leave(FAILED, path, number ? strerror((int)number) : text);
}

_Noreturn void fail_errno(const char *path) { fail("path", errno, path, ""); }

_Noreturn void too_large(const char *path) { leave(TOO_LARGE, path, "the layer is too large"); }

static _Noreturn void fail_here(void) { fail_errno(to.shown); }
static _Noreturn void refuse(const char *why) { leave(REFUSED, to.shown, why); }

size_t input(void *bytes, size_t n) { return take(0, bytes, n, "stdin"); }

static char *copy(const char *text, size_t n) {
  char *made = strndup(text, n);
  if (!made) fail("path", ENOMEM, to.shown, "");
  return made;
}

/* ---- directories ---- */

/* What is there under a name. */
enum found { NOTHING, DIRECTORY, HIDDEN, OTHER };

static enum found look(int dir, const char *name) {
  struct stat st;
  if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
    if (errno != ENOENT) fail_here();
    return NOTHING;
  }
  if (S_ISDIR(st.st_mode)) return DIRECTORY;
  return S_ISCHR(st.st_mode) && st.st_rdev == 0 ? HIDDEN : OTHER;
}

static void set_opaque(int dir) {
  if (fsetxattr(dir, "trusted.overlay.opaque", "y", 1, 0) < 0) fail_here();
}

static int open_directory(int dir, const char *name) {
  return openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static void remember(const char *path, size_t n, struct timespec mtime) {
  to.late = grown(to.late, &to.late_room, to.nlate + 1, sizeof *to.late);
  to.late[to.nlate++] = (struct late){copy(path, n), mtime};
}

/* Makes a directory where none is, and opens it. One that takes the place of a whiteout hides what is below it. */
static int make_directory(int dir, const char *name) {
  enum found was = look(dir, name);
  if (was == OTHER) refuse("something on its way is no directory");
  if (was == HIDDEN && unlinkat(dir, name, 0) < 0) fail_here();
  if (was != DIRECTORY && mkdirat(dir, name, 0755) < 0) fail_here();
  /* One entry may name hundreds on its way. */
  if (was != DIRECTORY && ++to.directories > untar_rules.max_entries) refuse("too many directories");
  int fd = open_directory(dir, name);
  if (fd < 0) fail_here();
  if (was == HIDDEN) set_opaque(fd);
  return fd;
}

/* The directory that holds `path`, made where it is missing and `make`; its last part is `name`. */
static int parent_of(const char *path, bool make, const char **name) {
  const char *slash = strrchr(path, '/');
  size_t n = slash ? (size_t)(slash - path) : 0, known = strlen(to.dir_path);
  *name = slash ? slash + 1 : path;
  if (known == n && strncmp(path, to.dir_path, n) == 0) return to.dir;
  bool below = known > 0 && known < n && path[known] == '/' && strncmp(path, to.dir_path, known) == 0;
  int dir = below ? to.dir : to.root;
  char *text = copy(path, n), *rest = NULL;
  for (char *part = strtok_r(text + (below ? known : 0), "/", &rest); part; part = strtok_r(NULL, "/", &rest)) {
    bool is_new = make && look(dir, part) != DIRECTORY;
    int next = make ? make_directory(dir, part) : open_directory(dir, part);
    /* No entry named it, or not yet: unpacked again it is the same. */
    if (is_new) remember(path, (size_t)(part - text) + strlen(part), (struct timespec){0});
    if (next < 0) refuse("a hard link to what is not in this layer");
    if (dir != to.root && dir != to.dir) close(dir);
    dir = next;
  }
  if (to.dir != to.root && to.dir != dir) close(to.dir);
  free(text);
  free(to.dir_path);
  to.dir_path = copy(path, n);
  return to.dir = dir;
}

/* What was remembered may be below what is removed. */
static void forget_directory(void) {
  if (to.dir != to.root) close(to.dir);
  to.dir = to.root;
  to.dir_path[0] = 0;
}

/* Makes room for an entry that is no directory. */
static int clear_way(const char *path, const char **name) {
  int dir = parent_of(path, true, name);
  enum found was = look(dir, *name);
  if (was == DIRECTORY) {
    int kept = fcntl(dir, F_DUPFD_CLOEXEC, 3);
    if (kept < 0) fail_here();
    remove_tree(kept, *name, path);
    close(kept);
    forget_directory();
    dir = parent_of(path, true, name);
  } else if (was != NOTHING && unlinkat(dir, *name, 0) < 0) fail_here();
  return dir;
}

/* ---- attributes ---- */

/* Those that mean the same in any sandbox; all others, as the host's own (trusted.*, system.*), are left out. */
bool is_kept(const char *name) {
  if (strncmp(name, "user.overlay.", 13) == 0) return false;
  return strncmp(name, "user.", 5) == 0 || strcmp(name, "security.capability") == 0;
}

/* A file system with room for nothing more; it says the same of attributes that are too many for one file. */
static bool is_full(int fd) {
  struct statvfs fs;
  return fstatvfs(fd, &fs) < 0 || fs.f_bavail == 0;
}

static void set_attributes(const struct entry *e, int fd) {
  for (size_t i = 0; i < e->nattributes; i++) {
    const struct attribute *a = &e->attributes[i];
    if (!is_kept(a->name)) continue;
    if (a->bytes > to.max_bytes - to.bytes) too_large(to.shown);
    to.bytes += a->bytes;
    if (fsetxattr(fd, a->name, a->value, a->bytes, 0) == 0) continue;
    if (errno == EINVAL || errno == ERANGE || errno == E2BIG) refuse("an extended attribute that cannot be");
    if (errno == ENOSPC && !is_full(fd)) refuse("more extended attributes than a file can have");
    if (errno != ENOTSUP && errno != EPERM) fail_here();
  }
}

static void check_owner(const struct entry *e) {
  if (e->uid >= UINT32_MAX || e->gid >= UINT32_MAX) refuse("an owner beyond all ids");
}

/* Mode after owner, attributes after both: a change of owner clears set-id bits and capabilities. */
static void finish(const struct entry *e, int fd) {
  struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, e->mtime};
  if (fchown(fd, (uid_t)e->uid, (gid_t)e->gid) < 0 || fchmod(fd, e->mode) < 0) fail_here();
  set_attributes(e, fd);
  if (futimens(fd, times) < 0) fail_here();
}

/* Of what cannot be opened without an effect. */
static void finish_named(const struct entry *e, int dir, const char *name) {
  struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, e->mtime};
  if (fchownat(dir, name, (uid_t)e->uid, (gid_t)e->gid, AT_SYMLINK_NOFOLLOW) < 0) fail_here();
  if (e->type != ENTRY_SYMLINK && fchmodat(dir, name, e->mode, 0) < 0) fail_here();
  if (utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW) < 0) fail_here();
}

/* ---- entries ---- */

/* `.wh.NAME`. One that this layer has already is in the place of what is below: only a directory would be merged. */
static void place_whiteout(const char *path, const char *base) {
  const char *name;
  const char *hidden = base + sizeof WHITEOUT - 1;
  if (!*hidden || strcmp(hidden, ".") == 0 || strcmp(hidden, "..") == 0) refuse("it hides nothing");
  int dir = parent_of(path, true, &name);
  enum found was = look(dir, hidden);
  if (was == NOTHING) {
    /* Unpacked again it is the same, its time too. */
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {0}};
    if (mknodat(dir, hidden, S_IFCHR, makedev(0, 0)) < 0) fail_here();
    if (utimensat(dir, hidden, times, AT_SYMLINK_NOFOLLOW) < 0) fail_here();
  }
  if (was != DIRECTORY) return;
  int fd = open_directory(dir, hidden);
  if (fd < 0) fail_here();
  set_opaque(fd);
  close(fd);
}

static void place_directory(const struct entry *e) {
  const char *name;
  int fd, dir = *e->path ? parent_of(e->path, true, &name) : to.root;
  if (!*e->path) fd = fcntl(to.root, F_DUPFD_CLOEXEC, 3);
  else {
    /* Here, unlike on the way to something, a file or a link gives way. */
    if (look(dir, name) == OTHER && unlinkat(dir, name, 0) < 0) fail_here();
    fd = make_directory(dir, name);
  }
  if (fd < 0) fail_here();
  finish(e, fd);
  close(fd);
  remember(e->path, strlen(e->path), e->mtime);
}

static void place_hard_link(const struct entry *e) {
  const char *source, *name;
  struct stat st;
  int from = fcntl(parent_of(e->link, false, &source), F_DUPFD_CLOEXEC, 3);
  if (from < 0) fail_here();
  if (fstatat(from, source, &st, AT_SYMLINK_NOFOLLOW) < 0) refuse("a hard link to what is not in this layer");
  if (S_ISDIR(st.st_mode) || S_ISCHR(st.st_mode)) refuse("a hard link to what is no file");
  if (strcmp(e->path, e->link) != 0) {
    int dir = clear_way(e->path, &name);
    int made = linkat(from, source, dir, name, 0);
    if (made < 0 && errno == ENOENT) refuse("a hard link to what it replaces");
    if (made < 0) fail_here();
  }
  close(from);
}

static void place_file(const struct entry *e) {
  const char *name;
  if (e->occupied > to.max_bytes - to.bytes) too_large(to.shown);
  if (e->size > to.max_with_holes - to.with_holes) refuse("the files are too large with their holes");
  to.bytes += e->occupied;
  to.with_holes += e->size;
  int dir = clear_way(e->path, &name);
  to.fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (to.fd < 0) fail_here();
}

/* A sandbox has a /dev of its own, which hides what is there; anywhere else a node would open a device of the host. */
static void leave_out_device(const struct entry *e) {
  if (strncmp(e->path, "dev/", 4) != 0) refuse("a device node: sandboxes get theirs from the runtime");
}

void entry_begin(const struct entry *e) {
  const char *slash = strrchr(e->path, '/'), *base = slash ? slash + 1 : e->path, *name;
  to.shown = e->path;
  to.entries++;
  check_owner(e);
  if (strlen(e->path) >= PATH_BYTES) refuse("a name is too long");
  if (strcmp(base, OPAQUE) == 0) {
    set_opaque(parent_of(e->path, true, &name));
    return;
  }
  if (strncmp(base, METADATA, sizeof METADATA - 1) == 0) return;   /* of aufs, for nobody else */
  if (strncmp(base, WHITEOUT, sizeof WHITEOUT - 1) == 0) return place_whiteout(e->path, base);
  switch (e->type) {
    case ENTRY_DIRECTORY: return place_directory(e);
    case ENTRY_HARD_LINK: return place_hard_link(e);
    case ENTRY_DEVICE: return leave_out_device(e);
    case ENTRY_FILE: return place_file(e);
    case ENTRY_SYMLINK: {
      int dir = clear_way(e->path, &name);
      if (symlinkat(e->link, dir, name) < 0) fail_here();
      return finish_named(e, dir, name);
    }
    case ENTRY_FIFO: {
      int dir = clear_way(e->path, &name);
      if (mkfifoat(dir, name, 0600) < 0) fail_here();
      return finish_named(e, dir, name);
    }
  }
}

void entry_data(const void *bytes, size_t n) {
  if (to.fd < 0) return;     /* of what was left out */
  if (!give(to.fd, bytes, n)) fail_here();
}

void entry_hole(uint64_t n) {
  if (to.fd >= 0 && !leave_hole(to.fd, n)) fail_here();
}

void entry_end(const struct entry *e) {
  if (to.fd < 0) return;
  finish(e, to.fd);
  if (close(to.fd) < 0) fail_here();
  to.fd = -1;
}

/* Of a directory that was named twice the later counts. What was replaced since is no directory any more. */
static void set_times(void) {
  for (const struct late *late = to.late; late < to.late + to.nlate; late++) {
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, late->mtime};
    char *path = copy(late->path, strlen(late->path)), *rest = NULL;
    int dir = fcntl(to.root, F_DUPFD_CLOEXEC, 3);
    to.shown = late->path;
    for (char *part = strtok_r(path, "/", &rest); part && dir >= 0; part = strtok_r(NULL, "/", &rest)) {
      int next = open_directory(dir, part);
      close(dir);
      dir = next;
    }
    if (dir >= 0 && futimens(dir, times) < 0) fail_here();
    if (dir >= 0) close(dir);
    free(path);
  }
}

static uint64_t whole(const char *text) {
  char *end;
  errno = 0;
  unsigned long long n = strtoull(text, &end, 10);
  if (errno || *end || end == text) leave(MISUSED, text, USAGE);
  return n;
}

static void limit_memory(rlim_t most) {
#ifndef __SANITIZE_ADDRESS__
  setrlimit(RLIMIT_AS, &(struct rlimit){most, most});
#else
  (void)most;
#endif
}

/* Descriptors are held for the directories on the way down. */
static void allow_descriptors(void) {
  struct rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) < 0) fail_errno("limits");
  files.rlim_cur = files.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &files) < 0) fail_errno("limits");
}

/* The arguments are those from UPPER on. */
static int pack_layer(int argc, char **argv) {
  char **lists[3];
  size_t counts[3] = {0, 0, 0};
  static const char *const options[3] = {"--without", "--stub", "--lower"};
  if (argc < 5) leave(MISUSED, "", USAGE);
  for (int i = 0; i < 3; i++)
    if (!(lists[i] = calloc((size_t)argc, sizeof **lists))) fail("path", ENOMEM, "", "");
  long long newest = INT64_MAX;
  for (int i = 5; i < argc; i += 2) {
    int of = 0;
    while (of < 3 && strcmp(argv[i], options[of]) != 0) of++;
    if (i + 1 == argc || (of == 3 && strcmp(argv[i], "--newest") != 0)) leave(MISUSED, argv[i], USAGE);
    if (of == 3) newest = (long long)whole(argv[i + 1]);
    else lists[of][counts[of]++] = argv[i + 1];
  }
  limit_memory(MAX_MEMORY);
  allow_descriptors();
  pack_upper(&(struct pack_order){
    .upper = argv[0], .base = (uid_t)whole(argv[1]), .count = (uid_t)whole(argv[2]), .max_bytes = whole(argv[3]),
    .max_entries = whole(argv[4]), .newest = newest, .left_out = lists[0], .stubs = lists[1], .lowers = lists[2]});
  for (int i = 0; i < 3; i++) free(lists[i]);
  return 0;
}

static int unpack_layer(int argc, char **argv) {
  char answer[64];
  bool synced = argc == 5;
  if (!synced && (argc != 6 || strcmp(argv[5], "unsynced") != 0)) leave(MISUSED, "", USAGE);
  limit_memory(MAX_MEMORY);
  to.max_bytes = whole(argv[2]);
  to.max_with_holes = whole(argv[3]);
  untar_rules = (struct untar_rules){.as_layer = true, .max_entries = (unsigned long)whole(argv[4])};
  if (chdir(argv[1]) < 0 || chroot(".") < 0) fail_errno(argv[1]);
  to.root = to.dir = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (to.root < 0) fail_errno("/");
  to.dir_path = copy("", 0);
  remember("", 0, (struct timespec){0});
  untar();
  set_times();
  to.shown = "";
  if (synced && syncfs(to.root) < 0) fail_here();
  int n = snprintf(answer, sizeof answer, "%llu %llu\n", (unsigned long long)to.entries, (unsigned long long)to.bytes);
  return give(1, answer, (size_t)n) ? 0 : FAILED;
}

static void write_into(int dir, const char *name, const char *value, const char *shown) {
  int fd = openat(dir, name, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || !give(fd, value, strlen(value))) fail_errno(shown);
  close(fd);
}

/* 0 is the process that writes it (cgroups(7)); 1000 the most that oom_score_adj can be (proc(5)). */
static void enter_group(const char *directory) {
  int group = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (group < 0) fail_errno(directory);
  write_into(group, "cgroup.procs", "0", directory);
  write_into(AT_FDCWD, "/proc/self/oom_score_adj", "1000", "/proc/self/oom_score_adj");
  close(group);
}

int main(int argc, char **argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  umask(0);
  for (; argc > 2 && strcmp(argv[1], "--group") == 0; argc -= 2, argv += 2) enter_group(argv[2]);
  return argc > 1 && strcmp(argv[1], "pack") == 0 ? pack_layer(argc - 2, argv + 2) : unpack_layer(argc, argv);
}
