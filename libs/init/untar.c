/* untar.c: a tar as entries: ustar and v7, pax headers (POSIX.1-2024), GNU's long names, binary numbers and sparse files
 * (tar's manual, "Storing Sparse Files": the old kind, and 0.0, 0.1 and 1.0 in pax headers). Nothing here touches a file,
 * and whatever an archive holds, an entry that comes out of it names something below the directory it is unpacked into,
 * and is as large as it says: that is what fuzz/tar.c checks. What is not understood is refused, never skipped in
 * silence. */
#define _GNU_SOURCE
#include "files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 512, DISK_BLOCK = 4096 };

struct header {
  char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100];
  char magic[6], version[2], user[32], group[32], major[8], minor[8], prefix[155], rest[12];
};
_Static_assert(sizeof(struct header) == BLOCK, "a tar header is one block");

/* What an extended header says of the entry that follows it; texts are NULL and numbers unset where it says nothing. */
static struct {
  char *path, *link;
  bool has_size, has_uid, has_gid, has_mtime;
  uint64_t size, uid, gid;
  struct timespec mtime;
} extended;

struct untar_rules untar_rules;

/* What extended headers say of a sparse file; its map may be there, or come with its content. */
static struct {
  bool given, has_offset, has_size, has_count;
  char *name;
  uint64_t major, minor, size, count;
} sparse;

/* What of a file is in the archive, in this order; the rest of it are holes. */
static struct fragment { uint64_t offset, length; } fragments[MAX_FRAGMENTS];
static size_t nfragments;

static struct attribute attributes[MAX_ATTRIBUTES];
static size_t nattributes;

static char current[512];   /* for messages: the last name that was read */

static _Noreturn void invalid(const char *why) { fail("archive", 0, current, why); }

/* ---- input ---- */

/* False: the archive ends before. */
static bool read_block(void *block) {
  size_t n = input(block, BLOCK);
  if (n != 0 && n != BLOCK) invalid("it ends inside a header");
  return n == BLOCK;
}

static void read_exactly(void *bytes, size_t n) {
  if (input(bytes, n) != n) invalid("it ends inside an entry");
}

static void skip_padding(uint64_t size) {
  char rest[BLOCK];
  read_exactly(rest, (size_t)(-size & (BLOCK - 1)));
}

/* ---- fields ---- */

/* Octal with blanks around it, or, with the highest bit set, big-endian two's complement (GNU). */
static int64_t number(const char *field, size_t n, const char *otherwise) {
  const unsigned char *f = (const unsigned char *)field;
  if (f[0] & 0x80) {
    bool negative = f[0] & 0x40;
    uint64_t value = negative ? UINT64_MAX : 0;
    for (size_t i = 0; i < n; i++) {
      if (value >> 55 != (negative ? 0x1ff : 0)) invalid(otherwise);
      value = value << 8 | (i == 0 && !negative ? f[0] & 0x7f : f[i]);
    }
    return (int64_t)value;
  }
  size_t i = 0;
  int64_t value = 0;
  while (i < n && f[i] == ' ') i++;
  for (; i < n && f[i] >= '0' && f[i] <= '7'; i++) value = value << 3 | (f[i] - '0');
  for (; i < n; i++)
    if (f[i] != 0 && f[i] != ' ') invalid(otherwise);
  return value;
}

static uint64_t natural(const char *field, size_t n) {
  int64_t value = number(field, n, "a field is no number");
  if (value < 0) invalid("a number is negative");
  return (uint64_t)value;
}

/* ---- names ---- */

static char *copy(const char *text, size_t n) {
  char *made = strndup(text, n);
  if (!made) invalid("out of memory");
  return made;
}

/* Without ".", repeated slashes and a slash at the end; a part ".." or a slash at the beginning is refused. */
static char *relative(const char *name) {
  size_t parts = 0, length = 0;
  if (name[0] == '/' && !untar_rules.as_layer) invalid("an absolute name");
  if (strlen(name) > MAX_NAME) invalid("a name is too long");
  char *made = copy(name, strlen(name));
  for (size_t n; *name; name += n + (name[n] == '/')) {
    n = strcspn(name, "/");
    if (n == 0 || (n == 1 && name[0] == '.')) continue;
    if (n == 2 && name[0] == '.' && name[1] == '.') invalid("a name with ..");
    if (++parts > MAX_PARTS) invalid("a name of too many parts");
    if (length > 0) made[length++] = '/';
    memcpy(made + length, name, n);
    length += n;
  }
  made[length] = 0;
  return made;
}

static void set_text(char **into, const char *value, size_t n) {
  free(*into);
  *into = n > 0 ? copy(value, n) : NULL;
  if (n > 0 && strlen(*into) != n) invalid("a name with NUL");
  if (n > 0) snprintf(current, sizeof current, "%s", *into);
}

/* ---- extended headers ---- */

static uint64_t decimal(const char *value) {
  uint64_t n = 0;
  if (!*value) invalid("an extended header without its number");
  for (; *value; value++) {
    if (*value < '0' || *value > '9' || n > INT64_MAX / 10 - 1) invalid("an extended header with a wrong number");
    n = n * 10 + (uint64_t)(*value - '0');
  }
  return n;
}

/* Seconds with a fraction; before 1970 too. */
static struct timespec moment(char *value) {
  struct timespec t = {0, 0};
  bool negative = *value == '-';
  char *point = strchr(value, '.');
  if (point) *point = 0;
  t.tv_sec = (time_t)decimal(value + negative);
  for (int digit = 100000000; point && *++point; digit /= 10) {
    if (*point < '0' || *point > '9') invalid("an extended header with a wrong time");
    t.tv_nsec += digit * (*point - '0');
  }
  if (!negative) return t;
  t.tv_sec = -t.tv_sec - (t.tv_nsec > 0);
  t.tv_nsec = t.tv_nsec > 0 ? 1000000000 - t.tv_nsec : 0;
  return t;
}

static void add_fragment(uint64_t offset, uint64_t length) {
  if (nfragments == MAX_FRAGMENTS) invalid("a sparse file in too many pieces");
  fragments[nfragments++] = (struct fragment){offset, length};
}

/* 0.0 has a pair of records for each piece. */
static void set_piece(bool offset, uint64_t n) {
  static uint64_t at;
  if (sparse.has_offset == offset) invalid("a sparse file whose map is damaged");
  sparse.has_offset = offset;
  if (offset) at = n;
  else add_fragment(at, n);
}

/* 0.1 has all of them in one: `OFFSET,LENGTH,OFFSET,LENGTH...`. */
static void set_map(char *value) {
  bool offset = true;
  nfragments = 0;
  for (char *number, *rest = value; (number = strsep(&rest, ",")); offset = !offset) set_piece(offset, decimal(number));
}

static void set_sparse(const char *key, char *value, size_t n) {
  sparse.given = true;
  if (strcmp(key, "name") == 0) set_text(&sparse.name, value, n);
  else if (strcmp(key, "major") == 0) sparse.major = decimal(value);
  else if (strcmp(key, "minor") == 0) sparse.minor = decimal(value);
  else if (strcmp(key, "size") == 0 || strcmp(key, "realsize") == 0) sparse.has_size = true, sparse.size = decimal(value);
  else if (strcmp(key, "numblocks") == 0) sparse.has_count = true, sparse.count = decimal(value);
  else if (strcmp(key, "offset") == 0) set_piece(true, decimal(value));
  else if (strcmp(key, "numbytes") == 0) set_piece(false, decimal(value));
  else if (strcmp(key, "map") == 0) set_map(value);
  else invalid("a sparse file of an unknown kind");
}

/* Values may hold anything; of two with one name the later counts. */
static void set_attribute(const char *name, const char *value, size_t n) {
  size_t at = 0;
  while (at < nattributes && strcmp(attributes[at].name, name) != 0) at++;
  if (at == MAX_ATTRIBUTES) invalid("too many extended attributes");
  char *bytes = malloc(n + 1);
  if (!bytes) invalid("out of memory");
  memcpy(bytes, value, n);
  if (at < nattributes) free(attributes[at].value);
  else attributes[nattributes++].name = copy(name, strlen(name));
  attributes[at].value = bytes;
  attributes[at].bytes = n;
}

/* Keywords that are not here say nothing that is kept: other times, names of owners, comments. */
static void set_keyword(const char *key, char *value, size_t n, bool global) {
  bool path = strcmp(key, "path") == 0, link = strcmp(key, "linkpath") == 0, size = strcmp(key, "size") == 0;
  bool uid = strcmp(key, "uid") == 0, gid = strcmp(key, "gid") == 0, mtime = strcmp(key, "mtime") == 0;
  if (strncmp(key, "GNU.sparse.", 11) == 0) {
    if (global) invalid("a global header that makes every entry sparse");
    return set_sparse(key + 11, value, n);
  }
  if (untar_rules.as_layer && !global && strncmp(key, "SCHILY.xattr.", 13) == 0) return set_attribute(key + 13, value, n);
  if (!path && !link && !size && !uid && !gid && !mtime) return;
  if (global) invalid("a global header that names or owns every entry");
  if (path) set_text(&extended.path, value, n);
  else if (link) set_text(&extended.link, value, n);
  else if (size) extended.has_size = n > 0, extended.size = n > 0 ? decimal(value) : 0;
  else if (uid) extended.has_uid = n > 0, extended.uid = n > 0 ? decimal(value) : 0;
  else if (gid) extended.has_gid = n > 0, extended.gid = n > 0 ? decimal(value) : 0;
  else {
    extended.has_mtime = n > 0;
    if (n > 0) extended.mtime = moment(value);
  }
}

/* Records `LENGTH KEY=VALUE\n`; the length is that of the whole record. */
static void read_records(uint64_t size, bool global) {
  if (size > MAX_EXTENDED) invalid("an extended header is too large");
  char *text = malloc(size + 1), *end = text + size;
  if (!text) invalid("out of memory");
  read_exactly(text, size);
  skip_padding(size);
  for (char *at = text, *key; at < end; ) {
    size_t n = 0;
    for (key = at; key < end && *key >= '0' && *key <= '9' && n <= size; key++) n = n * 10 + (size_t)(*key - '0');
    if (key == at || key == end || *key++ != ' ') invalid("an extended header without its length");
    if (n > (size_t)(end - at) || at + n <= key || at[n - 1] != '\n') invalid("an extended header with a wrong length");
    char *last = at + n - 1, *value = memchr(key, '=', (size_t)(last - key));
    if (!value) invalid("an extended header without =");
    *value++ = *last = 0;
    set_keyword(key, value, (size_t)(last - value), global);
    at += n;
  }
  free(text);
}

/* GNU's entry whose content is the name, or the link, of the next. */
static void read_long(uint64_t size, char **into) {
  char text[MAX_NAME + 1];
  if (size > sizeof text) invalid("a name is too long");
  read_exactly(text, size);
  skip_padding(size);
  while (size > 0 && text[size - 1] == 0) size--;
  set_text(into, text, size);
}

static void forget_extended(void) {
  free(extended.path);
  free(extended.link);
  memset(&extended, 0, sizeof extended);
  free(sparse.name);
  memset(&sparse, 0, sizeof sparse);
  nfragments = 0;
  for (; nattributes > 0; nattributes--) {
    free(attributes[nattributes - 1].name);
    free(attributes[nattributes - 1].value);
  }
}

/* ---- sparse files ---- */

/* The old kind: four pieces in the header, and the size with its holes; twenty-one in each block that follows. */
static uint64_t read_old_map(const struct header *h) {
  enum { IN_HEADER = 386, HEADER_PIECES = 4, BLOCK_PIECES = 21, FIELD = 12 };
  char more[BLOCK];
  const char *block = (const char *)h, *pieces = block + IN_HEADER;
  /* star has the same letter for a map of another kind. */
  if (memcmp(h->magic, "ustar  ", sizeof h->magic + sizeof h->version) != 0) invalid("a sparse file of an unknown kind");
  const char *size = block + IN_HEADER + HEADER_PIECES * 2 * FIELD + 1;
  for (int most = HEADER_PIECES; ; most = BLOCK_PIECES, pieces = more) {
    const char *end = pieces + most * 2 * FIELD;
    for (const char *at = pieces; at < end && *at; at += 2 * FIELD)
      add_fragment(natural(at, FIELD), natural(at + FIELD, FIELD));
    if (!*end) return natural(size, FIELD);
    if (nfragments == 0) invalid("a sparse file whose map is damaged");
    read_exactly(more, BLOCK);
  }
}

/* 1.0 has its map before the content, filled up to whole blocks: a count, then offsets and lengths, a line for each.
 * Takes off `stored` what was read. */
static void read_map(uint64_t *stored) {
  char block[BLOCK];
  size_t at = BLOCK;
  uint64_t count = 1, offset = 0;
  nfragments = 0;
  for (uint64_t line = 0; line < 1 + 2 * count; line++) {
    uint64_t n = 0;
    for (size_t digits = 0; ; digits++) {
      if (at == BLOCK) {
        if (*stored < BLOCK) invalid("a sparse file whose map is damaged");
        read_exactly(block, BLOCK);
        *stored -= BLOCK;
        at = 0;
      }
      char c = block[at++];
      if (c == '\n' && digits > 0) break;
      if (c < '0' || c > '9' || n > INT64_MAX / 10 - 1) invalid("a sparse file whose map is damaged");
      n = n * 10 + (uint64_t)(c - '0');
    }
    if (line == 0 && n > MAX_FRAGMENTS) invalid("a sparse file in too many pieces");
    if (line == 0) count = n;
    else if (line % 2 == 1) offset = n;
    else add_fragment(offset, n);
  }
}

/* Pieces are in their order, within the file, and all that is stored; `occupied` becomes what they take on a disk. */
static void check_map(struct entry *e, uint64_t stored) {
  uint64_t end = 0, taken = 0, sum = 0;
  for (const struct fragment *f = fragments; f < fragments + nfragments; f++) {
    if (f->offset < end || f->offset > e->size || f->length > e->size - f->offset)
      invalid("a sparse file whose pieces lie over each other, or beyond its end");
    end = f->offset + f->length;
    sum += f->length;
    uint64_t first = f->offset & ~(uint64_t)(DISK_BLOCK - 1), last = (end + DISK_BLOCK - 1) & ~(uint64_t)(DISK_BLOCK - 1);
    if (f->length == 0) continue;
    e->occupied += last - (first > taken ? first : taken);
    taken = last;
  }
  if (e->occupied > e->size) e->occupied = e->size;
  if (sum != stored) invalid("a sparse file of which more, or less, is there than its map says");
}

/* Sets the sizes of a file, and what of it is in the archive. @returns bytes that are */
static uint64_t read_sizes(const struct header *h, struct entry *e) {
  uint64_t stored = extended.has_size ? extended.size : natural(h->size, sizeof h->size);
  e->size = e->occupied = stored;
  if (h->type != 'S' && !sparse.given) {
    add_fragment(0, stored);
    return stored;
  }
  if (h->type == 'S' && sparse.given) invalid("a sparse file of two kinds");
  if (h->type != 'S' && !sparse.has_size) invalid("a sparse file without its size");
  if (sparse.has_offset || sparse.major > 1 || sparse.minor > (sparse.major == 0)) invalid("a sparse file of an unknown kind");
  e->size = h->type == 'S' ? read_old_map(h) : sparse.size;
  if (sparse.major == 1) read_map(&stored);
  else if (sparse.has_count && sparse.count != nfragments) invalid("a sparse file whose map is damaged");
  e->occupied = 0;
  check_map(e, stored);
  return stored;
}

/* ---- entries ---- */

static bool is_ustar(const struct header *h) { return memcmp(h->magic, "ustar\0", 6) == 0; }

static char *name_of(const struct header *h) {
  char text[sizeof h->prefix + sizeof h->name + 2];
  if (sparse.name) return copy(sparse.name, strlen(sparse.name));   /* `path` then is one for tars that know no holes */
  if (extended.path) return copy(extended.path, strlen(extended.path));
  bool prefixed = is_ustar(h) && h->prefix[0];
  snprintf(text, sizeof text, "%.*s%s%.*s", prefixed ? (int)sizeof h->prefix : 0, h->prefix, prefixed ? "/" : "",
           (int)sizeof h->name, h->name);
  snprintf(current, sizeof current, "%s", text);
  return copy(text, strlen(text));
}

static enum entry_type type_of(const struct header *h, const char *name) {
  size_t n = strlen(name);
  switch (h->type) {
    case '0': case '7': case 0:   /* tars before POSIX know a directory by its slash */
      return n > 0 && name[n - 1] == '/' ? ENTRY_DIRECTORY : ENTRY_FILE;
    case '1': return ENTRY_HARD_LINK;
    case '2': return ENTRY_SYMLINK;
    case '3': case '4':
      if (!untar_rules.as_layer) invalid("a device node");
      return ENTRY_DEVICE;
    case '5': return ENTRY_DIRECTORY;
    case '6': return ENTRY_FIFO;
    case 'S': return ENTRY_FILE;
    default: invalid("an entry of unknown kind");
  }
}

static char *link_of(const struct header *h, enum entry_type type) {
  char *text = extended.link ? copy(extended.link, strlen(extended.link)) : copy(h->link, sizeof h->link);
  if (type == ENTRY_SYMLINK && (!*text || strlen(text) >= PATH_BYTES)) invalid("a link without a path, or too long a one");
  if (type != ENTRY_HARD_LINK) return text;
  char *made = relative(text);
  if (!*made) invalid("a hard link to nothing");
  free(text);
  return made;
}

static void read_fragment(uint64_t length) {
  static char chunk[CHUNK];
  for (uint64_t left = length; left > 0; ) {
    size_t n = left < CHUNK ? (size_t)left : CHUNK;
    read_exactly(chunk, n);
    entry_data(chunk, n);
    left -= n;
  }
}

static void read_content(uint64_t size) {
  uint64_t at = 0;
  for (const struct fragment *f = fragments; f < fragments + nfragments; at = f->offset + f->length, f++) {
    if (f->offset > at) entry_hole(f->offset - at);
    read_fragment(f->length);
  }
  if (at < size) entry_hole(size - at);
}

static void read_entry(const struct header *h) {
  char *name = name_of(h);
  struct entry e = {.type = type_of(h, name)};
  uint64_t stored = 0;
  bool links = e.type == ENTRY_SYMLINK || e.type == ENTRY_HARD_LINK;
  e.path = relative(name);
  e.link = links ? link_of(h, e.type) : NULL;
  if (!*e.path && e.type != ENTRY_DIRECTORY) invalid("an entry without a name");
  e.mode = (mode_t)natural(h->mode, sizeof h->mode) & 07777;
  e.uid = extended.has_uid ? extended.uid : natural(h->uid, sizeof h->uid);
  e.gid = extended.has_gid ? extended.gid : natural(h->gid, sizeof h->gid);
  e.mtime = extended.has_mtime ? extended.mtime : (struct timespec){.tv_sec = number(h->mtime, sizeof h->mtime, "a time is no number")};
  /* Only files have content; some writers give others a size nevertheless. */
  if (e.type == ENTRY_FILE) stored = read_sizes(h, &e);
  else if (sparse.given) invalid("a sparse file that is no file");
  e.attributes = attributes;
  e.nattributes = nattributes;
  entry_begin(&e);
  read_content(e.size);
  skip_padding(stored);
  entry_end(&e);
  free(name);
  free(e.path);
  free(e.link);
  forget_extended();
}

static void check_sum(const struct header *h) {
  static const char otherwise[] = "it is no tar, or damaged: a checksum is wrong";
  long long sum = 0, signed_sum = 0, wanted = number(h->checksum, sizeof h->checksum, otherwise);
  for (size_t i = 0; i < BLOCK; i++) {
    bool blank = i >= offsetof(struct header, checksum) && i < offsetof(struct header, type);
    sum += blank ? ' ' : ((const unsigned char *)h)[i];
    signed_sum += blank ? ' ' : ((const signed char *)h)[i];   /* as some old writers did */
  }
  if (sum != wanted && signed_sum != wanted) invalid(otherwise);
}

/* True: it was a header about the next one. */
static bool read_header(const struct header *h) {
  check_sum(h);
  if (!strchr("xgLKV", h->type) || !h->type) return read_entry(h), false;
  uint64_t size = natural(h->size, sizeof h->size);
  if (h->type == 'L') read_long(size, &extended.path);
  else if (h->type == 'K') read_long(size, &extended.link);
  else if (h->type != 'V') read_records(size, h->type == 'g');   /* V: the name of the volume */
  return true;
}

static bool is_zero(const char *bytes, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (bytes[i]) return false;
  return true;
}

/* Writers fill up to the size of their records, in zeros. */
static void read_trailing(void) {
  static char rest[64 << 10];
  for (size_t n, all = 0; (n = input(rest, sizeof rest)) > 0; all += n)
    if (untar_rules.as_layer) continue;
    else if (!is_zero(rest, n) || all > MAX_TRAILING) invalid("something comes after its end");
}

void untar(void) {
  struct header h;
  int about_next = 0;
  unsigned long entries = 0, most = untar_rules.max_entries ? untar_rules.max_entries : MAX_ENTRIES;
  current[0] = 0;
  forget_extended();
  for (;;) {
    bool there = read_block(&h);
    if (!there && untar_rules.as_layer) break;
    if (!there) invalid("it ends without its end marker");
    if (is_zero((const char *)&h, sizeof h)) break;
    bool more = read_header(&h);
    about_next = more ? about_next + 1 : 0;
    entries += !more;
    if (about_next > MAX_ABOUT_NEXT) invalid("too many extended headers");
    if (entries > most) invalid("too many entries");
  }
  if (about_next > 0 && (extended.path || extended.link || extended.has_size)) invalid("an extended header without its entry");
  read_trailing();
}
