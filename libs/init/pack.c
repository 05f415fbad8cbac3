/* pack.c: a file or a tree as a tar on stdout.
 *
 * Names are relative to the directory that was asked for; its own entry is "./". Left out are sockets and device nodes,
 * which unpack would refuse, and what is mounted by the kernel (proc, sysfs, devpts and the like): directories of those
 * are empty. What goes away while it is read is left out too. A file that becomes shorter is filled up with zeros, as
 * its size is told already; the process then fails in the end, after the archive. */
#define _GNU_SOURCE
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_DEPTH = 2048 };

/* Path of the entry at hand, relative; grows and shrinks with the walk. */
static char *path;
static size_t path_length, path_room;
static const char *shown;      /* the path that was asked for */
static char *shrunk;           /* a file that became shorter */

static _Noreturn void fail_here(void) {
  size_t room = 0;
  int error = errno;
  char *whole = grown(NULL, &room, strlen(shown) + path_length + 2, 1);
  stpcpy(stpcpy(stpcpy(whole, shown), path_length ? "/" : ""), path);
  errno = error;
  fail_errno(whole);
}

static void append(const char *name) {
  size_t n = strlen(name);
  path = grown(path, &path_room, path_length + n + 2, 1);
  if (path_length) path[path_length++] = '/';
  memcpy(path + path_length, name, n + 1);
  path_length += n;
}

static void cut_to(size_t length) {
  path_length = length;
  path[length] = 0;
}

/* ---- entries ---- */

static void put_entry(char type, const struct stat *st, long long size, const char *link) {
  put_header(&(struct header_of){.type = type, .path = path, .link = link, .mode = st->st_mode, .uid = st->st_uid,
                                 .gid = st->st_gid, .size = size, .mtime = st->st_mtim.tv_sec});
}

static void put_file(int dir, const char *name) {
  static char chunk[CHUNK];
  struct stat st;
  int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0 && (errno == ENOENT || errno == ELOOP || errno == ENXIO)) return;   /* it is something else by now */
  if (fd < 0 || fstat(fd, &st) < 0) fail_here();
  const char *link = S_ISREG(st.st_mode) ? stored_as(&st, path) : NULL;
  if (link) put_entry('1', &st, 0, link);
  else if (S_ISREG(st.st_mode)) put_entry('0', &st, st.st_size, "");
  for (long long left = link || !S_ISREG(st.st_mode) ? 0 : st.st_size; left > 0; ) {
    size_t want = left < CHUNK ? (size_t)left : CHUNK, n = shrunk ? 0 : take(fd, chunk, want, path);
    if (n < want) {
      memset(chunk + n, 0, want - n);
      if (!shrunk && !(shrunk = strdup(path))) fail("path", ENOMEM, shown, "");
    }
    put(chunk, want);
    left -= (long long)want;
  }
  if (!link && S_ISREG(st.st_mode)) put_padding(st.st_size);
  close(fd);
}

static void put_one(int dir, const char *name, const struct stat *st) {
  char target[PATH_BYTES];
  if (S_ISREG(st->st_mode)) put_file(dir, name);
  else if (S_ISDIR(st->st_mode)) put_entry('5', st, 0, "");
  else if (S_ISFIFO(st->st_mode)) put_entry('6', st, 0, "");
  else if (S_ISLNK(st->st_mode)) {
    ssize_t n = readlinkat(dir, name, target, sizeof target - 1);
    if (n < 0) return;
    target[n] = 0;
    put_entry('2', st, 0, target);
  }
}

/* What may not be read is found before the first byte is sent: a download that begins should not break off for it. */
static void check_one(int dir, const char *name, const struct stat *st) {
  int wanted = S_ISDIR(st->st_mode) ? R_OK | X_OK : S_ISREG(st->st_mode) ? R_OK : F_OK;
  if (!S_ISLNK(st->st_mode) && faccessat(dir, name, wanted, 0) < 0 && errno != ENOENT) fail_here();
}

/* ---- the walk ---- */

static struct { DIR *d; size_t length; } levels[MAX_DEPTH];
static int depth;

static bool enter(int dir, const char *name) {
  int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0 && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP)) return false;
  if (fd < 0) fail_here();
  if (of_kernel(fd)) {
    close(fd);
    return false;
  }
  errno = ENAMETOOLONG;
  if (depth == MAX_DEPTH || !(levels[depth].d = fdopendir(fd))) fail_here();
  levels[depth++].length = path_length;
  return true;
}

/* Calls `visit` for everything in the open directory, and below it, parents first. */
static void walk(void (*visit)(int dir, const char *name, const struct stat *st)) {
  while (depth > 0) {
    struct stat st;
    DIR *d = levels[depth - 1].d;
    cut_to(levels[depth - 1].length);
    errno = 0;
    struct dirent *e = readdir(d);
    if (!e && errno) fail_here();
    if (!e) {
      closedir(d);
      depth--;
      continue;
    }
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
    append(e->d_name);
    if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
      if (errno != ENOENT) fail_here();
      continue;
    }
    visit(dirfd(d), e->d_name, &st);
    if (S_ISDIR(st.st_mode)) enter(dirfd(d), e->d_name);
  }
}

/* The whole of what was asked for, a link at its end followed. */
static void walk_all(void (*visit)(int dir, const char *name, const struct stat *st)) {
  struct stat st;
  cut_to(0);
  if (stat(shown, &st) < 0) fail_errno(shown);
  if (S_ISDIR(st.st_mode)) {
    int dir = open(shown, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) fail_errno(shown);
    visit(dir, ".", &st);
    enter(dir, ".");
    walk(visit);
    close(dir);
  } else {
    struct target t = follow(shown, false);
    append(place_of(shown, false).name);
    visit(t.at.dir, t.at.name, &t.st);
  }
}

void pack(const char *asked) {
  shown = asked;
  path = grown(path, &path_room, PATH_BYTES, 1);
  setlocale(LC_CTYPE, "C.UTF-8");
  if (geteuid() != 0) walk_all(check_one);   /* root reads everything */
  walk_all(put_one);
  put_end();
  if (shrunk) fail("short", 0, shrunk, "");
}
