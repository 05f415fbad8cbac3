/* tar.c: entries as a tar on stdout: ustar, with a pax header where that cannot say it (POSIX.1-2024, pax). */
#define _GNU_SOURCE
#include "files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

enum { BLOCK = 512 };
enum { MAX_LINKED = 1 << 18 };   /* hard links that are remembered; beyond, each is stored whole */

struct header {
  char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100];
  char magic[6], version[2], user[32], group[32], major[8], minor[8], prefix[155], rest[12];
};
_Static_assert(sizeof(struct header) == BLOCK, "a tar header is one block");

/* ---- hard links ---- */

static struct { dev_t dev; ino_t ino; char *path; } *linked;
static size_t nlinked;

const char *stored_as(const struct stat *st, const char *path) {
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

/* ---- fields ---- */

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

/* ---- extended headers ---- */

static char *extended;
static size_t extended_length, extended_room;

/* One pax record, `LENGTH KEY=VALUE\n`, whose length counts its own digits too. */
static void extend(const char *prefix, const char *key, const void *value, size_t bytes) {
  size_t rest = strlen(prefix) + strlen(key) + bytes + 3, n = rest + 1;
  while (n < rest + (size_t)snprintf(NULL, 0, "%zu", n)) n++;
  extended = grown(extended, &extended_room, extended_length + n + 1, 1);
  char *at = extended + extended_length;
  at += sprintf(at, "%zu %s%s=", n, prefix, key);
  if (bytes > 0) memcpy(at, value, bytes);
  at[bytes] = '\n';
  extended_length += n;
}

/* Names that are no UTF-8 have to be announced. */
static void extend_name(const char *key, const char *value) {
  if (mbstowcs(NULL, value, 0) == (size_t)-1) extend("", "hdrcharset", "BINARY", 6);
  extend("", key, value, strlen(value));
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
  char text[24];
  bool fits = value >= 0 && value >> 3 * (n - 1) == 0;
  if (!fits) extend("", key, text, (size_t)snprintf(text, sizeof text, "%lld", value));
  octal(field, n, fits ? (unsigned long long)value : 0);
}

static void put_extended(const char *path) {
  struct header h = {.type = 'x', .name = "PaxHeaders/", .mode = "0000644", .uid = "0000000", .gid = "0000000"};
  if (extended_length == 0) return;
  const char *slash = strrchr(path, '/');
  strncat(h.name, slash ? slash + 1 : path, sizeof h.name - sizeof "PaxHeaders/");
  octal(h.size, sizeof h.size, extended_length);
  octal(h.mtime, sizeof h.mtime, 0);
  finish(&h);
  put(extended, extended_length);
  put_padding((long long)extended_length);
}

/* ---- entries ---- */

void put_header(const struct header_of *of) {
  static char *name;
  static size_t name_room;
  struct header h = {.type = of->type};
  size_t length = strlen(of->path), n = strlen(of->link);
  extended_length = 0;
  name = grown(name, &name_room, length + 3, 1);
  strcpy(stpcpy(name, of->path), of->type != '5' ? "" : length ? "/" : "./");
  put_name(&h, name);
  if (n > sizeof h.link) extend_name("linkpath", of->link);
  memcpy(h.link, of->link, n < sizeof h.link ? n : sizeof h.link);
  octal(h.mode, sizeof h.mode, of->mode & 07777);
  put_number(h.uid, sizeof h.uid, "uid", of->uid);
  put_number(h.gid, sizeof h.gid, "gid", of->gid);
  put_number(h.size, sizeof h.size, "size", of->size);
  put_number(h.mtime, sizeof h.mtime, "mtime", of->mtime);
  for (size_t i = 0; i < of->nattributes; i++)
    extend("SCHILY.xattr.", of->attributes[i].name, of->attributes[i].value, of->attributes[i].bytes);
  put_extended(of->path);
  finish(&h);
}

void put_padding(long long written) {
  static const char zeros[BLOCK];
  put(zeros, (size_t)(-written & (BLOCK - 1)));
}

void put_end(void) {
  static const char end[2 * BLOCK];
  put(end, sizeof end);
  flush();
}
