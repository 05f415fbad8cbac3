/* pack.c: a file or a tree as a tar on stdout: ustar, with a pax header where that cannot say it (POSIX.1-2024, pax).
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

enum { BLOCK = 512, MAX_DEPTH = 2048 };
enum { MAX_LINKED = 1 << 18 };   /* hard links that are remembered; beyond, each is stored whole */

struct header {
  char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100];
  char magic[6], version[2], user[32], group[32], major[8], minor[8], prefix[155], rest[12];
};
_Static_assert(sizeof(struct header) == BLOCK, "a tar header is one block");

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

/* ---- hard links ---- */

static struct { dev_t dev; ino_t ino; char *path; } *linked;
static size_t nlinked;

/* The path under which a file was stored before; NULL the first time. */
static const char *stored_as(const struct stat *st) {
  enum { SLOTS = MAX_LINKED * 2 };
  if (st->st_nlink < 2) return NULL;
  if (!linked && !(linked = calloc(SLOTS, sizeof *linked))) return NULL;
  size_t slot = (size_t)((st->st_ino * 0x9e3779b97f4a7c15u ^ st->st_dev) >> 20) % SLOTS;
  for (; linked[slot].path; slot = (slot + 1) % SLOTS)
    if (linked[slot].dev == st->st_dev && linked[slot].ino == st->st_ino) return linked[slot].path;
  if (nlinked == MAX_LINKED || !(linked[slot].path = strdup(path))) return NULL;
  linked[slot].dev = st->st_dev;
  linked[slot].ino = st->st_ino;
  nlinked++;
  return NULL;
}

/* ---- headers ---- */

static void pad(long long written) {
  static const char zeros[BLOCK];
  put(zeros, (size_t)(-written & (BLOCK - 1)));
}

static void octal(char *field, size_t n, unsigned long long value) {
  for (field += n - 1, *field = 0; n > 1; n--, value >>= 3) *--field = (char)('0' + (value & 7));
}

static void finish(struct header *h) {
  unsigned sum = 0;
  memcpy(h->magic, "ustar", 6);
  memcpy(h->version, "00", 2);
  memset(h->checksum, ' ', sizeof h->checksum);
  for (size_t i = 0; i < sizeof *h; i++) sum += ((const unsigned char *)h)[i];
  octal(h->checksum, 7, sum);
  put(h, sizeof *h);
}

/* One pax record, `LENGTH KEY=VALUE\n`, whose length counts its own digits too. */
static char *extended;
static size_t extended_length, extended_room;

static void extend(const char *key, const char *value) {
  size_t rest = strlen(key) + strlen(value) + 3, n = rest + 1;
  while (n < rest + (size_t)snprintf(NULL, 0, "%zu", n)) n++;
  extended = grown(extended, &extended_room, extended_length + n + 1, 1);
  extended_length += (size_t)sprintf(extended + extended_length, "%zu %s=%s\n", n, key, value);
}

static void extend_number(const char *key, long long value) {
  char text[24];
  snprintf(text, sizeof text, "%lld", value);
  extend(key, text);
}

/* Names that are no UTF-8 have to be announced. */
static void extend_name(const char *key, const char *value) {
  if (mbstowcs(NULL, value, 0) == (size_t)-1) extend("hdrcharset", "BINARY");
  extend(key, value);
}

/* Name, or prefix and name where a slash parts it so that both fit. */
static void put_name(struct header *h, const char *name) {
  size_t n = strlen(name), at = n;
  if (n > sizeof h->name)
    for (at = n - sizeof h->name - 1; at < n && (at == 0 || name[at] != '/'); at++) {}
  if (n <= sizeof h->name) {
    memcpy(h->name, name, n);
  } else if (at < n - 1 && at <= sizeof h->prefix) {
    memcpy(h->prefix, name, at);
    memcpy(h->name, name + at + 1, n - at - 1);
  } else {
    extend_name("path", name);
    memcpy(h->name, name, sizeof h->name);
  }
}

static void put_number(char *field, size_t n, const char *key, long long value) {
  bool fits = value >= 0 && value >> 3 * (n - 1) == 0;
  if (!fits) extend_number(key, value);
  octal(field, n, fits ? (unsigned long long)value : 0);
}

static void put_extended(void) {
  struct header h = {.type = 'x', .name = "PaxHeaders/", .mode = "0000644", .uid = "0000000", .gid = "0000000"};
  if (extended_length == 0) return;
  const char *slash = strrchr(path, '/');
  strncat(h.name, slash ? slash + 1 : path, sizeof h.name - sizeof "PaxHeaders/");
  octal(h.size, sizeof h.size, extended_length);
  octal(h.mtime, sizeof h.mtime, 0);
  finish(&h);
  put(extended, extended_length);
  pad((long long)extended_length);
}

static void put_header(char type, const struct stat *st, long long size, const char *link) {
  struct header h = {.type = type};
  size_t length = path_length, n = strlen(link);
  extended_length = 0;
  path = grown(path, &path_room, length + 3, 1);
  strcpy(path + length, type != '5' ? "" : length ? "/" : "./");
  put_name(&h, path);
  path[length] = 0;
  if (n > sizeof h.link) extend_name("linkpath", link);
  memcpy(h.link, link, n < sizeof h.link ? n : sizeof h.link);
  octal(h.mode, sizeof h.mode, st->st_mode & 07777);
  put_number(h.uid, sizeof h.uid, "uid", st->st_uid);
  put_number(h.gid, sizeof h.gid, "gid", st->st_gid);
  put_number(h.size, sizeof h.size, "size", size);
  put_number(h.mtime, sizeof h.mtime, "mtime", st->st_mtim.tv_sec);
  put_extended();
  finish(&h);
}

/* ---- entries ---- */

static void put_file(int dir, const char *name) {
  static char chunk[CHUNK];
  struct stat st;
  int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0 && (errno == ENOENT || errno == ELOOP || errno == ENXIO)) return;   /* it is something else by now */
  if (fd < 0 || fstat(fd, &st) < 0) fail_here();
  const char *link = S_ISREG(st.st_mode) ? stored_as(&st) : NULL;
  if (link) put_header('1', &st, 0, link);
  else if (S_ISREG(st.st_mode)) put_header('0', &st, st.st_size, "");
  for (long long left = link || !S_ISREG(st.st_mode) ? 0 : st.st_size; left > 0; ) {
    size_t want = left < CHUNK ? (size_t)left : CHUNK, n = shrunk ? 0 : take(fd, chunk, want, path);
    if (n < want) {
      memset(chunk + n, 0, want - n);
      if (!shrunk && !(shrunk = strdup(path))) fail("path", ENOMEM, shown, "");
    }
    put(chunk, want);
    left -= (long long)want;
  }
  if (!link && S_ISREG(st.st_mode)) pad(st.st_size);
  close(fd);
}

static void put_one(int dir, const char *name, const struct stat *st) {
  char target[PATH_BYTES];
  if (S_ISREG(st->st_mode)) put_file(dir, name);
  else if (S_ISDIR(st->st_mode)) put_header('5', st, 0, "");
  else if (S_ISFIFO(st->st_mode)) put_header('6', st, 0, "");
  else if (S_ISLNK(st->st_mode)) {
    ssize_t n = readlinkat(dir, name, target, sizeof target - 1);
    if (n < 0) return;
    target[n] = 0;
    put_header('2', st, 0, target);
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
  static const char end[2 * BLOCK];
  shown = asked;
  path = grown(path, &path_room, PATH_BYTES, 1);
  setlocale(LC_CTYPE, "C.UTF-8");
  if (geteuid() != 0) walk_all(check_one);   /* root reads everything */
  walk_all(put_one);
  put(end, sizeof end);
  flush();
  if (shrunk) fail("short", 0, shrunk, "");
}
