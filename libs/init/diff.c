/* diff.c: berth-diff, what the writable layer of a sandbox makes different from its image.
 *
 *   berth-diff BASE UPPER [--skip PATH]... LOWER...
 *
 * UPPER is the upper directory of an overlay whose ids are shifted by BASE, LOWER are the layers below it, the topmost
 * first, with natural ids. Written to stdout as it is found: a kind (A added, C changed, D deleted), the path from the
 * root of the overlay, a NUL; sorted by path, part by part. A directory that only had to be copied up because of what is
 * in it shows only with what is in it. What is below PATH is left out.
 *
 * It runs as root of the host, and a sandbox may be moving about everything in UPPER meanwhile. So every part of a path
 * is opened from the directory that holds it and never through a link; what is gone, or has become something else, by
 * the time it is opened was gone before. Layers do not change.
 *
 * Descriptors are held for the directories on the way down, so there is an end to how far down it looks. */
#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { FAILED = 1, MISUSED = 2 };
enum { MAX_DEPTH = 1000 };
enum { MEMORY_BYTES = 1 << 30 };   /* the names of the largest directory have to fit */

_Noreturn void fail(const char *word, long long number, const char *path, const char *text) {
  (void)word;
  fprintf(stderr, "%s: %s\n", path, number ? strerror((int)number) : text);
  exit(FAILED);
}

_Noreturn void fail_errno(const char *what) { fail("path", errno, what, ""); }

/* ---- the path, and what is told of it ---- */

static struct { char *text; size_t length, room; } path;
/* Of each directory on the way down: how long its path is, and whether it was told. */
static struct { size_t length; bool told; } way[MAX_DEPTH + 1];
static size_t depth;

static void tell(char kind, size_t length) {
  putchar(kind);
  fwrite(path.text, 1, length, stdout);
  putchar(0);
  if (ferror(stdout)) exit(FAILED);   /* nobody reads on */
}

/* What changed in a directory changed the directory, and it comes first. */
static void tell_path(char kind) {
  for (size_t i = 1; i <= depth; i++)
    if (!way[i].told) {
      tell('C', way[i].length);
      way[i].told = true;
    }
  tell(kind, path.length);
}

static size_t push(const char *name) {
  size_t before = path.length, n = strlen(name);
  path.text = grown(path.text, &path.room, before + n + 1, 1);
  path.text[before] = '/';
  memcpy(path.text + before + 1, name, n);
  path.length = before + n + 1;
  return before;
}

/* ---- layers ---- */

struct stack { int *fds; size_t count; };   /* directories that are one in the overlay, the topmost first */

static bool is_whiteout(const struct stat *st) { return S_ISCHR(st->st_mode) && st->st_rdev == makedev(0, 0); }

static bool is_opaque(int dir) {
  char value = 0;
  return fgetxattr(dir, "trusted.overlay.opaque", &value, 1) == 1 && value == 'y';
}

static int open_directory(int dir, const char *name) {
  return openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
}

/* What the image has under a name: false where it has nothing, else `st`, and the directories of that name. */
static bool find(const struct stack *layers, const char *name, struct stat *st, struct stack *below) {
  bool found = false;
  for (size_t i = 0; i < layers->count; i++) {
    struct stat one;
    if (fstatat(layers->fds[i], name, &one, AT_SYMLINK_NOFOLLOW) < 0) {
      if (errno == ENOENT) continue;
      fail_errno(name);
    }
    if (is_whiteout(&one)) break;
    if (!S_ISDIR(one.st_mode)) {
      if (!found) *st = one;
      return true;
    }
    if (!found) *st = one;
    found = true;
    if (!below) return true;
    int fd = open_directory(layers->fds[i], name);
    if (fd < 0) fail_errno(name);
    below->fds[below->count++] = fd;
    if (is_opaque(fd)) break;
  }
  return found;
}

static struct stack room_for(const struct stack *layers) {
  struct stack below = {calloc(layers->count + 1, sizeof *below.fds), 0};
  if (!below.fds) fail_errno("layers");
  return below;
}

static void close_stack(struct stack *stack) {
  for (size_t i = 0; i < stack->count; i++) close(stack->fds[i]);
  free(stack->fds);
}

/* ---- the walk ---- */

static uid_t base;
static char **skipped;
static size_t skipped_count;

static bool is_skipped(void) {
  for (size_t i = 0; i < skipped_count; i++)
    if (strlen(skipped[i]) == path.length && memcmp(skipped[i], path.text, path.length) == 0) return true;
  return false;
}

static bool same_attributes(const struct stat *upper, const struct stat *lower) {
  return (upper->st_mode & 07777) == (lower->st_mode & 07777) && upper->st_uid == base + lower->st_uid &&
         upper->st_gid == base + lower->st_gid;
}

static void walk(int upper, const struct stack *layers, bool opaque);

/* `name` is a directory in the upper one, which hides what layers have under that name where it is opaque. */
static void enter(int upper, const char *name, const struct stat *st, const struct stack *layers, bool opaque) {
  struct stack below = room_for(layers);
  struct stat lower;
  bool known = find(layers, name, &lower, &below);
  bool merged = known && S_ISDIR(lower.st_mode);
  bool told = !merged || !same_attributes(st, &lower);
  if (told) tell_path(known ? 'C' : 'A');
  int fd = depth < MAX_DEPTH ? open_directory(upper, name) : -1;
  if (fd >= 0) {
    way[++depth].length = path.length;
    way[depth].told = told;
    walk(fd, &below, merged && (opaque || is_opaque(fd)));
    depth--;
    close(fd);
  } else if (depth < MAX_DEPTH && errno != ENOENT && errno != ENOTDIR && errno != ELOOP) fail_errno(name);
  close_stack(&below);
}

static void visit(int upper, const char *name, const struct stack *layers, bool opaque) {
  struct stat st, lower;
  if (fstatat(upper, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
    /* Not in the upper directory: of the image, and hidden by an opaque one; or gone since its name was read. */
    if (errno != ENOENT && errno != ENOTDIR) fail_errno(name);
    if (opaque && find(layers, name, &lower, NULL)) tell_path('D');
  } else if (is_whiteout(&st)) {
    if (find(layers, name, &lower, NULL)) tell_path('D');
  } else if (S_ISDIR(st.st_mode)) enter(upper, name, &st, layers, opaque);
  else tell_path(find(layers, name, &lower, NULL) ? 'C' : 'A');
}

static void walk(int upper, const struct stack *layers, bool opaque) {
  struct names names = {NULL, 0, 0};
  read_names(upper, &names, "read a directory");
  if (opaque)
    for (size_t i = 0; i < layers->count; i++) read_names(layers->fds[i], &names, "read a directory");
  settle_names(&names);
  for (size_t i = 0; i < names.count; i++) {
    size_t before = push(names.list[i]);
    if (!is_skipped()) visit(upper, names.list[i], layers, opaque);
    path.length = before;
  }
  free_names(&names);
}

static _Noreturn void misuse(void) {
  fputs("usage: berth-diff BASE UPPER [--skip PATH]... LOWER...\n", stderr);
  exit(MISUSED);
}

static void set_limits(void) {
  struct rlimit files;
  const struct rlimit memory = {MEMORY_BYTES, MEMORY_BYTES};
  if (getrlimit(RLIMIT_NOFILE, &files) < 0) fail_errno("limits");
  files.rlim_cur = files.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &files) < 0) fail_errno("limits");
#ifndef __SANITIZE_ADDRESS__
  if (setrlimit(RLIMIT_AS, &memory) < 0) fail_errno("limits");
#else
  (void)memory;
#endif
}

int main(int argc, char **argv) {
  if (argc < 3) misuse();
  char *end;
  base = (uid_t)strtoul(argv[1], &end, 10);
  if (end == argv[1] || *end) misuse();
  struct stack layers = {calloc((size_t)argc, sizeof *layers.fds), 0};
  skipped = calloc((size_t)argc, sizeof *skipped);
  if (!layers.fds || !skipped) fail_errno("start");
  set_limits();
  int upper = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (upper < 0) fail_errno(argv[2]);
  for (int i = 3; i < argc; i++)
    if (strcmp(argv[i], "--skip") == 0 && i + 1 < argc) skipped[skipped_count++] = argv[++i];
    else if ((layers.fds[layers.count++] = open(argv[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0) fail_errno(argv[i]);
  walk(upper, &layers, false);
  if (fflush(stdout) == EOF) return FAILED;
  return 0;
}
