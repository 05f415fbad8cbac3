/* upper.c: directories of overlayfs as a tar: the upper one as a layer of an image, or all that are seen as one.
 *
 * As a layer, what hides becomes `.wh.NAME` and `.wh..wh..opq` (image-spec, layer.md), names come in order and times in
 * whole seconds, so that the same directory is the same archive. With lower directories the archive is the root that a
 * sandbox sees. Owners of the upper directory are taken back out of the sandbox's range; lower ones have natural owners.
 *
 * It runs as root of the host, and a sandbox may be moving about everything in the upper directory meanwhile (not while
 * a layer is made of it, but nothing here relies on that). So every part of a path is opened from the directory that
 * holds it and never through a link; what is gone, or has become something else, by the time it is opened is left out.
 * What a layer could not say is refused; sockets are left out, as they are nothing without who listens. */
#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

static const char WHITEOUT[] = ".wh.", OPAQUE[] = ".wh..wh..opq", OVERLAY[] = "trusted.overlay.";
static const char CAPABILITY[] = "security.capability";

/* Directories that are one in the overlay, the topmost first. */
struct part { int fd; bool shifted; };
struct stack { struct part *parts; size_t count; };

static const struct pack_order *order;
static uint64_t bytes, entries;
static bool as_layer, shrunk;
/* Path of the entry at hand, relative to the root. */
static char path[PATH_BYTES];
static size_t path_length, depth;

static _Noreturn void fail_here(void) { fail_errno(path); }
static _Noreturn void refuse(const char *why) { fail("archive", 0, path, why); }

static size_t push(const char *name) {
  size_t before = path_length, n = strlen(name);
  if (before + n + 2 > sizeof path) refuse("a name below it is too long");
  if (before) path[path_length++] = '/';
  memcpy(path + path_length, name, n + 1);
  path_length += n;
  return before;
}

static void pop(size_t before) {
  path_length = before;
  path[before] = 0;
}

static bool is_listed(char **list) {
  for (; *list; list++)
    if (strcmp(*list + strspn(*list, "/"), path) == 0) return true;
  return false;
}

static bool is_whiteout(const struct stat *st) { return S_ISCHR(st->st_mode) && st->st_rdev == makedev(0, 0); }

static bool is_opaque(int dir) {
  char value[2];
  ssize_t n = fgetxattr(dir, "trusted.overlay.opaque", value, sizeof value);
  if (n >= 0 && (n != 1 || *value != 'y')) refuse("it is opaque in a way that is not known");
  if (n < 0 && errno == ERANGE) refuse("it is opaque in a way that is not known");
  return n == 1;
}

/* True: it was there a moment ago, and what is there now is for nobody to open. */
static bool is_gone(void) { return errno == ENOENT || errno == ENOTDIR || errno == ELOOP || errno == ENXIO; }

static int open_directory(int dir, const char *name) {
  int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0 && !is_gone()) fail_here();
  return fd;
}

/* ---- attributes ---- */

static struct attribute attributes[MAX_ATTRIBUTES];
static size_t nattributes;

static uid_t natural(uid_t id) {
  if (id < order->base || id - order->base >= order->count) refuse("an owner that is not of the sandbox");
  return id - order->base;
}

/* Capabilities that are valid below the root of a user namespace name that root (VFS_CAP_REVISION_3, capabilities(7));
 * as that of the sandbox they are those of anybody's root (revision 2). Fields are little-endian. */
static void unshift_capability(struct attribute *a) {
  enum { WITH_ROOT = 24, WITHOUT_ROOT = 20, REVISION = 3 };
  unsigned char *field = (unsigned char *)a->value;
  if (a->bytes != WITH_ROOT || field[REVISION] != 3) return;
  field += WITHOUT_ROOT;
  uid_t root = natural(field[0] | (uid_t)field[1] << 8 | (uid_t)field[2] << 16 | (uid_t)field[3] << 24);
  for (int i = 0; i < 4; i++) field[i] = (unsigned char)(root >> 8 * i);
  if (root != 0) return;
  a->value[REVISION] = 2;
  a->bytes = WITHOUT_ROOT;
}

static int by_attribute(const void *a, const void *b) {
  return strcmp(((const struct attribute *)a)->name, ((const struct attribute *)b)->name);
}

static void take_bytes(uint64_t n) {
  if (n > order->max_bytes - bytes) too_large(path);
  bytes += n;
}

/* Those that unpack keeps. */
static void read_attributes(int fd, bool shifted) {
  static char names[64 << 10], values[MAX_EXTENDED - 4 * PATH_BYTES];
  static const char too_many[] = "more extended attributes than a layer can say";
  size_t used = 0;
  nattributes = 0;
  ssize_t n = flistxattr(fd, names, sizeof names);
  if (n < 0 && errno == ENOTSUP) return;
  if (n < 0 && (errno == ERANGE || errno == E2BIG)) refuse(too_many);
  if (n < 0) fail_here();
  for (char *name = names; name < names + n; name += strlen(name) + 1) {
    const char *of_overlay = strncmp(name, OVERLAY, sizeof OVERLAY - 1) == 0 ? name + sizeof OVERLAY - 1 : "";
    if (strcmp(of_overlay, "redirect") == 0 || strcmp(of_overlay, "metacopy") == 0 ||
        strcmp(of_overlay, "whiteout") == 0)
      refuse("it is in another place than it seems");
    if (!is_kept(name)) continue;
    if (strchr(name, '=')) refuse("an extended attribute whose name holds =");
    size_t room = sizeof values - used, about = strlen(name) + 32;
    ssize_t size = nattributes < MAX_ATTRIBUTES && about < room ? fgetxattr(fd, name, values + used, room - about) : -1;
    if (size < 0 && errno == ENODATA) continue;
    if (nattributes == MAX_ATTRIBUTES || about >= room || (size < 0 && errno == ERANGE)) refuse(too_many);
    if (size < 0) fail_here();
    struct attribute *a = &attributes[nattributes++];
    *a = (struct attribute){name, values + used, (size_t)size};
    used += (size_t)size + about;
    if (shifted && strcmp(name, CAPABILITY) == 0) unshift_capability(a);
    take_bytes(a->bytes);
  }
  qsort(attributes, nattributes, sizeof *attributes, by_attribute);
}

/* ---- entries ---- */

static void put_entry(char type, const struct stat *st, bool shifted, long long size, const char *link) {
  long long mtime = st->st_mtim.tv_sec;
  put_header(&(struct header_of){
    .type = type, .path = path, .link = link, .mode = st->st_mode, .size = size,
    .uid = shifted ? natural(st->st_uid) : st->st_uid, .gid = shifted ? natural(st->st_gid) : st->st_gid,
    .mtime = mtime > order->newest ? order->newest : mtime, .attributes = attributes, .nattributes = nattributes});
  nattributes = 0;
}

/* A file without content, owner and time, called `name` after the first `kept` bytes of the path. */
static void put_marker(size_t kept, const char *before, const char *name) {
  char marker[PATH_BYTES];
  if (snprintf(marker, sizeof marker, "%.*s%s%s", (int)kept, path, before, name) >= PATH_BYTES) refuse("a name is too long");
  put_header(&(struct header_of){.type = '0', .path = marker, .link = "", .mode = 0600});
}

static void put_content(int fd, long long size) {
  static char chunk[CHUNK];
  bool ended = false;
  for (long long left = size; left > 0; ) {
    size_t want = left < CHUNK ? (size_t)left : CHUNK, n = ended ? 0 : take(fd, chunk, want, path);
    if (n < want) memset(chunk + n, 0, want - n);
    if (n < want) ended = shrunk = true;   /* its size is told already */
    put(chunk, want);
    left -= (long long)want;
  }
  put_padding(size);
}

static void put_file(const struct part *dir, const char *name) {
  struct stat st;
  int fd = openat(dir->fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0 && is_gone()) return;
  if (fd < 0 || fstat(fd, &st) < 0) fail_here();
  const char *link = S_ISREG(st.st_mode) ? stored_as(&st, path) : NULL;
  if (link) put_entry('1', &st, dir->shifted, 0, link);
  else if (S_ISREG(st.st_mode)) {
    take_bytes((uint64_t)st.st_size);
    read_attributes(fd, dir->shifted);
    put_entry('0', &st, dir->shifted, st.st_size, "");
    put_content(fd, st.st_size);
  }
  close(fd);
}

/* Of what cannot be opened without an effect; unpack sets no attributes of it. */
static void put_named(const struct part *dir, const char *name, const struct stat *st) {
  char target[PATH_BYTES] = "";
  bool is_link = S_ISLNK(st->st_mode);
  if (is_link && readlinkat(dir->fd, name, target, sizeof target - 1) <= 0) return;
  const char *link = stored_as(st, path);
  if (link) put_entry('1', st, dir->shifted, 0, link);
  else put_entry(is_link ? '2' : '6', st, dir->shifted, 0, target);
}

static void put_one(const struct part *dir, const char *name, const struct stat *st) {
  if (S_ISREG(st->st_mode)) put_file(dir, name);
  else if (S_ISLNK(st->st_mode) || S_ISFIFO(st->st_mode)) put_named(dir, name, st);
  else if (!S_ISSOCK(st->st_mode) && strncmp(path, "dev/", 4) != 0) refuse("a device node");
}

/* ---- the walk ---- */

static void walk(const struct stack *stack);

static void put_directory(const struct stack *stack) {
  const struct part *top = stack->parts;
  struct stat st;
  if (fstat(top->fd, &st) < 0) fail_here();
  read_attributes(top->fd, top->shifted);
  put_entry('5', &st, top->shifted, 0, "");
  if (as_layer && is_opaque(top->fd)) put_marker(path_length, "/", OPAQUE);
  depth++;
  walk(stack);
  depth--;
}

/* Whether there is nothing at `path` but what is to be left out. */
static bool is_nothing(int dir, const char *name, const struct stat *st) {
  struct names names = {NULL, 0, 0};
  bool nothing = true;
  if (is_listed(order->left_out)) return true;
  if (!is_listed(order->stubs)) return false;
  if (!S_ISDIR(st->st_mode)) return S_ISREG(st->st_mode) && st->st_size == 0;
  int fd = open_directory(dir, name);
  if (fd < 0) return true;
  read_names(fd, &names, path);
  for (size_t i = 0; i < names.count && nothing; i++) {
    struct stat one;
    size_t before = push(names.list[i]);
    nothing = fstatat(fd, names.list[i], &one, AT_SYMLINK_NOFOLLOW) < 0 || is_nothing(fd, names.list[i], &one);
    pop(before);
  }
  free_names(&names);
  close(fd);
  return nothing;
}

static void visit(const struct stack *stack, const char *name) {
  const struct part *top = NULL;   /* where it is */
  struct stat st = {0};
  struct stack below = {calloc(stack->count, sizeof *below.parts), 0};
  if (!below.parts) fail("path", ENOMEM, path, "");
  for (const struct part *part = stack->parts; part < stack->parts + stack->count; part++) {
    struct stat one;
    if (fstatat(part->fd, name, &one, AT_SYMLINK_NOFOLLOW) < 0) {
      if (errno != ENOENT) fail_here();
      continue;
    }
    if (top && !S_ISDIR(one.st_mode)) break;
    if (!top) top = part, st = one;
    if (!S_ISDIR(one.st_mode)) break;
    int fd = open_directory(part->fd, name);
    if (fd < 0) break;
    below.parts[below.count++] = (struct part){fd, part->shifted};
    if (is_opaque(fd)) break;
  }
  if (top && !is_nothing(top->fd, name, &st)) {
    if (depth + 2 > MAX_PARTS) refuse("too many directories above it");   /* one more part for what makes it opaque */
    if (++entries > order->max_entries) refuse("too many entries");
    if (as_layer && strncmp(name, WHITEOUT, sizeof WHITEOUT - 1) == 0) refuse("in a layer its name would remove something");
    if (below.count > 0) put_directory(&below);
    else if (is_whiteout(&st)) {
      if (as_layer) put_marker(path_length - strlen(name), WHITEOUT, name);
    } else if (!S_ISDIR(st.st_mode)) put_one(top, name, &st);
  }
  for (size_t i = 0; i < below.count; i++) close(below.parts[i].fd);
  free(below.parts);
}

static void walk(const struct stack *stack) {
  struct names names = {NULL, 0, 0};
  for (size_t i = 0; i < stack->count; i++) read_names(stack->parts[i].fd, &names, path);
  settle_names(&names);
  for (size_t i = 0; i < names.count; i++) {
    size_t before = push(names.list[i]);
    visit(stack, names.list[i]);
    pop(before);
  }
  free_names(&names);
}

void pack_upper(const struct pack_order *asked) {
  size_t count = 0;
  order = asked;
  while (order->lowers[count]) count++;
  as_layer = count == 0;
  struct stack stack = {calloc(count + 1, sizeof *stack.parts), count + 1};
  if (!stack.parts) fail("path", ENOMEM, "", "");
  setlocale(LC_CTYPE, "C.UTF-8");
  for (size_t i = 0; i <= count; i++) {
    const char *directory = i ? order->lowers[i - 1] : order->upper;
    stack.parts[i] = (struct part){open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC), i == 0};
    if (stack.parts[i].fd < 0) fail_errno(directory);
  }
  walk(&stack);
  free(stack.parts);
  put_end();
  if (shrunk) fail("path", 0, "", "a file became shorter while it was read");
}
