/* place.c: new files made beside their target and moved over it whole, and where a path leads.
 *
 * A new file has no name while it is written (O_TMPFILE), so whatever kills this process leaves nothing. It gets its
 * name by linkat(2); over a file that is there by a name of its own first and rename(2), since linkat replaces nothing:
 * a SIGKILL between these two leaves a whole `.berth-…`. Where the file system has no O_TMPFILE (overlayfs before Linux
 * 6.1) the name is there from the beginning, and is taken away by fail() and by the handler of signals that end us. */
#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_LINKS = 40 };   /* the kernel's own (path_resolution(7)) */
enum { NOREPLACE = 1 };    /* linux/fs.h, RENAME_NOREPLACE */

static struct { int dir, fd; char name[TEMPORARY_BYTES]; } fresh = {.fd = -1};

/* Also from a signal handler. */
void fresh_abandon(void) {
  if (fresh.name[0]) unlinkat(fresh.dir, fresh.name, 0);
  fresh.name[0] = 0;
}

static void new_name(char name[TEMPORARY_BYTES]) {
  unsigned long long random;
  if (getrandom(&random, sizeof random, 0) != sizeof random) fail_errno("getrandom");
  snprintf(name, TEMPORARY_BYTES, ".berth-%016llx", random);
}

int fresh_begin(int dir, const char *shown) {
  fresh.dir = dir;
  fresh.fd = openat(dir, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
  if (fresh.fd >= 0) return fresh.fd;
  if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL) fail_errno(shown);
  char name[TEMPORARY_BYTES];
  new_name(name);
  fresh.fd = openat(dir, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fresh.fd < 0) fail_errno(shown);
  memcpy(fresh.name, name, sizeof name);
  return fresh.fd;
}

int rename_exclusive(int from_dir, const char *from, int to_dir, const char *to) {
  return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, NOREPLACE);
}

static int give_name(int dir, const char *name) {
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fresh.fd);
  return linkat(AT_FDCWD, path, dir, name, AT_SYMLINK_FOLLOW);
}

void fresh_commit(int dir, const char *name, bool replace, const char *shown) {
  if (!fresh.name[0]) {
    if (give_name(dir, name) == 0) goto done;
    if (errno != EEXIST || !replace) fail_errno(shown);
    char temporary[TEMPORARY_BYTES];
    new_name(temporary);
    if (give_name(dir, temporary) < 0) fail_errno(shown);
    fresh.dir = dir;
    memcpy(fresh.name, temporary, sizeof temporary);
  }
  int renamed = replace ? renameat(fresh.dir, fresh.name, dir, name) : rename_exclusive(fresh.dir, fresh.name, dir, name);
  if (renamed < 0) fail_errno(shown);
  fresh.name[0] = 0;
done:
  /* Quota may be told only now, of what was written before (close(2)). */
  if (close(fresh.fd) < 0) fail_errno(shown);
  fresh.fd = -1;
}

void place_over(int dir, const char *name, int (*make)(int dir, const char *name, const void *what), const void *what,
                const char *shown) {
  struct stat st;
  if (make(dir, name, what) == 0) return;
  if (errno != EEXIST || fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0) fail_errno(shown);
  errno = EISDIR;
  if (S_ISDIR(st.st_mode)) fail_errno(shown);
  char temporary[TEMPORARY_BYTES];
  new_name(temporary);
  if (make(dir, temporary, what) < 0) fail_errno(shown);
  fresh.dir = dir;
  memcpy(fresh.name, temporary, sizeof temporary);
  if (renameat(dir, temporary, dir, name) < 0) fail_errno(shown);
  /* rename(2) does nothing where both are links to one file already. */
  fresh_abandon();
}

/* ---- paths ---- */

static char *copy(const char *text, size_t n) {
  char *made = strndup(text, n);
  if (!made) fail_errno("");
  return made;
}

/* Cuts a path into its directory ("" where it names none) and its last part; trailing slashes mean nothing. */
static void cut(const char *path, char **directory, char **name) {
  size_t end = strlen(path);
  while (end > 0 && path[end - 1] == '/') end--;
  size_t start = end;
  while (start > 0 && path[start - 1] != '/') start--;
  *directory = copy(path, start);
  *name = end > start ? copy(path + start, end - start) : copy(".", 1);
}

static bool is_dots(const char *name) { return strcmp(name, ".") == 0 || strcmp(name, "..") == 0; }

static int open_directory(int base, const char *path) {
  return openat(base, *path ? path : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
}

/* The deepest directory of `path` that exists; what comes after it is `missing`. */
static int open_existing(int base, const char *path, char **missing) {
  char *prefix = copy(path, strlen(path));
  for (size_t end = strlen(path);;) {
    prefix[end] = 0;
    int fd = open_directory(base, prefix);
    if (fd >= 0 || errno != ENOENT || end == 0) {
      *missing = copy(path + end, strlen(path + end));
      return fd;
    }
    while (end > 0 && path[end - 1] == '/') end--;
    while (end > 0 && path[end - 1] != '/') end--;
  }
}

struct target follow(const char *path, bool parents) {
  char link[PATH_BYTES];
  const char *text = path;
  int base = AT_FDCWD;
  for (int links = 0; links <= MAX_LINKS; links++) {
    struct target t = {.missing = ""};
    char *directory;
    cut(text, &directory, &t.at.name);
    t.at.dir = parents ? open_existing(base, directory, &t.missing) : open_directory(base, directory);
    if (t.at.dir < 0) fail_errno(path);
    errno = EISDIR;
    if (is_dots(t.at.name) || (*text && text[strlen(text) - 1] == '/')) fail_errno(path);
    if (*t.missing) return t;
    t.exists = fstatat(t.at.dir, t.at.name, &t.st, AT_SYMLINK_NOFOLLOW) == 0;
    if (!t.exists && errno != ENOENT) fail_errno(path);
    if (!t.exists || !S_ISLNK(t.st.st_mode)) return t;
    /* Where the kernel would not follow it (protected_symlinks, proc(5)), neither do we. */
    struct stat led;
    if (fstatat(t.at.dir, t.at.name, &led, 0) < 0 && errno != ENOENT) fail_errno(path);
    ssize_t n = readlinkat(t.at.dir, t.at.name, link, sizeof link);
    if (n < 0) fail_errno(path);
    text = copy(link, (size_t)n);
    base = t.at.dir;
  }
  errno = ELOOP;
  fail_errno(path);
}

int make_directories(int dir, char *path, struct owner owner, const char *shown) {
  for (char *rest, *part = strtok_r(path, "/", &rest); part; part = strtok_r(NULL, "/", &rest)) {
    bool made = mkdirat(dir, part, 0755) == 0;
    if (!made && errno != EEXIST) fail_errno(shown);
    if (made && fchownat(dir, part, owner.uid, owner.gid, AT_SYMLINK_NOFOLLOW) < 0) fail_errno(shown);
    int next = open_directory(dir, part);
    if (next < 0) fail_errno(shown);
    close(dir);
    dir = next;
  }
  return dir;
}

struct place place_of(const char *path, bool parents) {
  static const struct owner as_it_is = {(uid_t)-1, (gid_t)-1};
  struct place p;
  char *directory;
  cut(path, &directory, &p.name);
  if (is_dots(p.name)) {
    directory = copy(path, strlen(path));
    p.name = copy(".", 1);
  }
  p.dir = parents ? make_directories(open_directory(AT_FDCWD, "/"), directory, as_it_is, path)
                  : open_directory(AT_FDCWD, directory);
  if (p.dir < 0) fail_errno(path);
  return p;
}
