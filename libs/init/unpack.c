/* unpack.c: the entries of a tar as files in a directory that exists.
 *
 * Entry by entry: each is made beside its place and moved there whole, so what breaks off leaves whole entries only.
 * Directories that are there stay as they are; new ones get their mode, owner and time in the end, since a read-only
 * one could not be filled and each new entry would change the time. No link is followed on the way to an entry: an
 * archive could bring the link itself, and then lead out of the directory it was meant for. */
#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A directory that was made, to be finished in the end; one that no entry named is left as it is. */
struct made { char *path; bool named; mode_t mode; struct owner owner; struct timespec mtime; };

static struct {
  int root;
  const char *asked;
  bool as_archived;
  struct owner owner;
  struct unpacked done;
  struct made *made;
  size_t nmade, made_room, unnamed;
  /* The directory of the last entry: archives are mostly in order. "" is the root. */
  int dir;
  char *dir_path;
  int fd;                    /* the file being written */
  char *shown;               /* the whole path of the entry at hand */
  size_t shown_room;
} to;

size_t input(void *bytes, size_t n) { return take(0, bytes, n, "stdin"); }

static void show(const char *path) {
  to.shown = grown(to.shown, &to.shown_room, strlen(to.asked) + strlen(path) + 2, 1);
  stpcpy(stpcpy(stpcpy(to.shown, to.asked), "/"), path);
}

static _Noreturn void fail_here(void) {
  if (errno == ELOOP) fail("archive", 0, to.shown, "it leads through a link that is there");
  fail_errno(to.shown);
}

static struct owner owner_for(const struct entry *e) {
  if (!to.as_archived) return to.owner;
  errno = EINVAL;
  if (e->uid >= UINT32_MAX || e->gid >= UINT32_MAX) fail_here();
  return (struct owner){(uid_t)e->uid, (gid_t)e->gid};
}

/* Set-id bits were meant for the owner in the archive. */
static mode_t mode_for(const struct entry *e) { return to.as_archived ? e->mode : e->mode & 01777; }

static char *copy(const char *text, size_t n) {
  char *made = strndup(text, n);
  if (!made) fail("path", ENOMEM, to.shown, "");
  return made;
}

/* ---- directories ---- */

static bool is_link(int dir, const char *name) {
  struct stat st;
  return fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode);
}

/* ELOOP for a link, wherever it leads. */
static int open_part(int dir, const char *part) {
  int fd = openat(dir, part, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0 && errno == ENOTDIR) errno = is_link(dir, part) ? ELOOP : ENOTDIR;
  return fd;
}

static void remember(struct made made) {
  to.made = grown(to.made, &to.made_room, to.nmade + 1, sizeof *to.made);
  to.made[to.nmade++] = made;
  to.unnamed += !made.named;
}

/* One that the archive does not name, or not yet. */
static void make_unnamed(int dir, const char *name, const char *path, size_t n) {
  if (mkdirat(dir, name, 0755) < 0) fail_here();
  if (fchownat(dir, name, to.owner.uid, to.owner.gid, AT_SYMLINK_NOFOLLOW) < 0) fail_here();
  remember((struct made){.path = copy(path, n)});
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
    int next = open_part(dir, part);
    if (next < 0 && errno == ENOENT && make) {
      make_unnamed(dir, part, path, (size_t)(part - text) + strlen(part));
      next = open_part(dir, part);
    }
    if (next < 0) fail_here();
    if (dir != to.root && dir != to.dir) close(dir);
    dir = next;
  }
  if (to.dir != to.root) close(to.dir);
  free(text);
  free(to.dir_path);
  to.dir_path = copy(path, n);
  return to.dir = dir;
}

static struct made *unnamed(const char *path) {
  for (size_t i = to.nmade; to.unnamed > 0 && i-- > 0; )
    if (!to.made[i].named && strcmp(to.made[i].path, path) == 0) return &to.made[i];
  return NULL;
}

static void place_directory(const struct entry *e, int dir, const char *name) {
  struct stat st;
  struct made made = {NULL, true, mode_for(e), owner_for(e), e->mtime};
  if (mkdirat(dir, name, 0700) == 0) {
    made.path = copy(e->path, strlen(e->path));
    remember(made);
    return;
  }
  if (errno != EEXIST || fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0) fail_here();
  errno = S_ISLNK(st.st_mode) ? ELOOP : EEXIST;
  if (!S_ISDIR(st.st_mode)) fail_here();
  struct made *before = unnamed(e->path);
  if (!before) return;
  made.path = before->path;
  *before = made;
  to.unnamed--;
}

/* From the last to the first, so that the time of a directory is not changed again by one in it. */
static void finish_directories(void) {
  for (size_t i = to.nmade; i-- > 0; ) {
    const struct made *m = &to.made[i];
    const char *name;
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, m->mtime};
    if (!m->named) continue;
    show(m->path);
    int dir = parent_of(m->path, false, &name), fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fchown(fd, m->owner.uid, m->owner.gid) < 0 || fchmod(fd, m->mode) < 0 || futimens(fd, times) < 0)
      fail_here();
    close(fd);
  }
}

/* ---- entries ---- */

static int make_symlink(int dir, const char *name, const void *text) { return symlinkat(text, dir, name); }
static int make_fifo(int dir, const char *name, const void *mode) { return mkfifoat(dir, name, *(const mode_t *)mode); }

struct source { int dir; const char *name; };
static int make_hard_link(int dir, const char *name, const void *what) {
  const struct source *source = what;
  return linkat(source->dir, source->name, dir, name, 0);
}

static void place_hard_link(const struct entry *e) {
  struct source source;
  const char *name;
  struct stat st;
  source.dir = fcntl(parent_of(e->link, false, &source.name), F_DUPFD_CLOEXEC, 3);
  if (source.dir < 0) fail_here();
  if (fstatat(source.dir, source.name, &st, AT_SYMLINK_NOFOLLOW) < 0)
    fail("archive", 0, to.shown, "a hard link to what is not there");
  int dir = parent_of(e->path, true, &name);
  place_over(dir, name, make_hard_link, &source, to.shown);
  close(source.dir);
}

static void set_attributes(const struct entry *e, int dir, const char *name) {
  struct owner owner = owner_for(e);
  struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, e->mtime};
  if (fchownat(dir, name, owner.uid, owner.gid, AT_SYMLINK_NOFOLLOW) < 0) fail_here();
  if (utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW) < 0) fail_here();
}

void entry_begin(const struct entry *e) {
  const char *name;
  mode_t mode = mode_for(e);
  show(e->path);
  if (!*e->path) return;     /* the directory itself is the caller's, and stays as it is */
  if (e->type == ENTRY_HARD_LINK) return place_hard_link(e);
  int dir = parent_of(e->path, true, &name);
  switch (e->type) {
    case ENTRY_DIRECTORY: return place_directory(e, dir, name);
    case ENTRY_SYMLINK: place_over(dir, name, make_symlink, e->link, to.shown); break;
    case ENTRY_FIFO: place_over(dir, name, make_fifo, &mode, to.shown); break;
    default:
      to.fd = fresh_begin(dir, to.shown);
      return;
  }
  set_attributes(e, dir, name);
}

void entry_data(const void *bytes, size_t n) {
  if (!give(to.fd, bytes, n)) fail_here();
  to.done.bytes += n;
}

void entry_hole(uint64_t n) {
  if (!leave_hole(to.fd, n)) fail_here();
}

void entry_end(const struct entry *e) {
  const char *name;
  struct owner owner = owner_for(e);
  struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, e->mtime};
  to.done.entries++;
  if (e->type != ENTRY_FILE) return;
  if (fchown(to.fd, owner.uid, owner.gid) < 0 || fchmod(to.fd, mode_for(e)) < 0 || futimens(to.fd, times) < 0) fail_here();
  int dir = parent_of(e->path, true, &name);
  fresh_commit(dir, name, true, to.shown);
}

struct unpacked unpack(const char *path, bool as_archived, struct owner owner) {
  to.asked = path;
  to.as_archived = as_archived;
  to.owner = owner;
  to.root = to.dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (to.root < 0) fail_errno(path);
  show("");
  to.dir_path = copy("", 0);
  untar();
  finish_directories();
  return to.done;
}
