/* tree.c: removes a directory with all that is in it, however deep.
 *
 * Neither stack nor descriptors grow with the depth: the first KEPT directories stay open on the way down, of deeper
 * ones only the last, and the walk comes back up by "..". That is compared with what it went down through: somebody
 * may move a directory away meanwhile, and nothing of where it went may be touched. */
#define _GNU_SOURCE
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { KEPT = 64 };
enum { MAX_RETURNS = 64 };   /* to directories that others go on filling */

/* The open directory and those above it: what each is, and how it is called in the one above. */
struct level { dev_t dev; ino_t ino; char *name; DIR *d; };
static struct level *levels;
static size_t depth, levels_room;

static _Noreturn void fail_below(const char *shown, const char *name) {
  size_t room = 0, n = strlen(shown) + strlen(name) + 2;
  int error = errno;
  for (size_t i = 1; i < depth; i++) n += strlen(levels[i].name) + 1;
  char *path = grown(NULL, &room, n, 1), *at = stpcpy(path, shown);
  for (size_t i = 1; i < depth; i++) at = stpcpy(stpcpy(at, "/"), levels[i].name);
  if (*name) stpcpy(stpcpy(at, "/"), name);
  errno = error;
  fail_errno(path);
}

static DIR *open_stream(int dir, const char *name, int flags, struct stat *st) {
  int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC | flags);
  return fd < 0 || fstat(fd, st) < 0 ? NULL : fdopendir(fd);
}

/* A mount point cannot be removed, and what is mounted there is not ours to empty. */
static void enter(int dir, const char *name, const char *shown) {
  struct stat st;
  DIR *d = open_stream(dir, name, O_NOFOLLOW, &st);
  if (!d) fail_below(shown, depth ? name : "");
  errno = EBUSY;
  if (depth && st.st_dev != levels[0].dev) fail_below(shown, name);
  levels = grown(levels, &levels_room, depth + 1, sizeof *levels);
  levels[depth] = (struct level){st.st_dev, st.st_ino, strdup(name), d};
  if (!levels[depth++].name) fail("path", ENOMEM, shown, "");
}

static bool is_filled(void) { return errno == ENOTEMPTY || errno == EEXIST; }

/* Removes what is no directory, and directories that are empty; the name of the first other, or NULL at the end. */
static const char *empty(DIR *d, const char *shown) {
  struct dirent *e;
  while (errno = 0, (e = readdir(d))) {
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
    if (e->d_type != DT_DIR) {
      if (unlinkat(dirfd(d), e->d_name, 0) == 0 || errno == ENOENT) continue;
      if (errno != EISDIR) fail_below(shown, e->d_name);   /* d_type may be unknown */
    }
    if (unlinkat(dirfd(d), e->d_name, AT_REMOVEDIR) == 0 || errno == ENOENT) continue;
    if (!is_filled()) fail_below(shown, e->d_name);
    return e->d_name;
  }
  if (errno) fail_below(shown, "");
  return NULL;
}

/* The directory above the open one. */
static int above(const char *shown) {
  struct level *parent = &levels[depth - 2];
  struct stat st;
  if (parent->d) return dirfd(parent->d);
  if (!(parent->d = open_stream(dirfd(levels[depth - 1].d), "..", 0, &st))) fail_below(shown, "");
  errno = ESTALE;
  if (st.st_dev != parent->dev || st.st_ino != parent->ino) fail_below(shown, "");
  return dirfd(parent->d);
}

void remove_tree(int dir, const char *name, const char *shown) {
  int returns = 0;
  enter(dir, name, shown);
  while (depth > 0) {
    const char *child = empty(levels[depth - 1].d, shown);
    if (child) {
      enter(dirfd(levels[depth - 1].d), child, shown);
      if (depth - 2 < KEPT) continue;
      closedir(levels[depth - 2].d);
      levels[depth - 2].d = NULL;
      continue;
    }
    int up = depth > 1 ? above(shown) : dir;
    struct level done = levels[--depth];
    closedir(done.d);
    if (unlinkat(up, done.name, AT_REMOVEDIR) < 0 && errno != ENOENT) {
      /* Somebody put something there since: once more down, but not for ever. */
      if (!is_filled() || ++returns > MAX_RETURNS) fail_below(shown, depth ? done.name : "");
      enter(up, done.name, shown);
    }
    free(done.name);
  }
}
