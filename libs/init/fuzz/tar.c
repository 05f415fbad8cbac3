/* tar.c: libFuzzer over the reader of archives. Includes untar.c; input comes from the fuzzer's bytes, and instead of
 * files this checks what every entry must be whatever the archive holds: a name below the directory it is unpacked
 * into, just as much content as was announced, holes of sparse files included, begin and end in pairs.
 *
 * A refused archive leaves what was allocated for it (the process would end): leaks are not looked for.
 *
 * A mutation would almost never keep a header's checksum right, so blocks that look like headers get theirs first. */
#include "untar.c"

#include <assert.h>
#include <setjmp.h>

static const uint8_t *data, *data_end;
static jmp_buf failed;
static const struct entry *open_entry;
static uint64_t content, holes;

_Noreturn void fail(const char *word, long long error, const char *path, const char *text) {
  assert(strcmp(word, "archive") == 0 && error == 0 && strlen(path) < sizeof current && *text);
  longjmp(failed, 1);
}

size_t input(void *bytes, size_t n) {
  if (n > (size_t)(data_end - data)) n = (size_t)(data_end - data);
  memcpy(bytes, data, n);
  data += n;
  return n;
}

static void check_relative(const char *name) {
  size_t parts = 0;
  assert(strlen(name) <= MAX_NAME);
  for (const char *part = name; ; part = strchr(part, '/') + 1) {
    size_t n = strcspn(part, "/");
    assert(n > 0 && !(n == 1 && part[0] == '.') && !(n == 2 && part[0] == '.' && part[1] == '.'));
    assert(++parts <= MAX_PARTS);
    if (!part[n]) return;
  }
}

void entry_begin(const struct entry *e) {
  assert(!open_entry);
  open_entry = e;
  content = holes = 0;
  if (*e->path) check_relative(e->path);
  else assert(e->type == ENTRY_DIRECTORY);
  assert(e->type != ENTRY_DEVICE || untar_rules.as_layer);
  assert(e->nattributes == 0 || untar_rules.as_layer);
  if (e->type == ENTRY_HARD_LINK) check_relative(e->link);
  else if (e->type == ENTRY_SYMLINK) assert(*e->link && strlen(e->link) < PATH_BYTES);
  else assert(!e->link);
  assert((e->mode & ~07777u) == 0 && e->mtime.tv_nsec >= 0 && e->mtime.tv_nsec < 1000000000);
}

void entry_data(const void *bytes, size_t n) {
  assert(open_entry->type == ENTRY_FILE && n > 0 && n <= CHUNK);
  assert((content += n) <= open_entry->size);
  for (size_t i = 0; i < n; i += 997) assert(((const uint8_t *)bytes)[i] <= 255);
}

void entry_hole(uint64_t n) {
  assert(open_entry->type == ENTRY_FILE && n > 0 && n <= open_entry->size - content);
  content += n;
  holes += n;
}

void entry_end(const struct entry *e) {
  assert(e == open_entry && content == e->size && e->size <= INT64_MAX);
  assert(e->occupied <= e->size && e->size - e->occupied <= holes);
  open_entry = NULL;
}

static void mend_checksum(uint8_t *block) {
  unsigned sum = 0;
  memset(block + 148, ' ', 8);
  for (int i = 0; i < BLOCK; i++) sum += block[i];
  snprintf((char *)block + 148, 8, "%06o", sum);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  untar_rules.as_layer = size > 0 && bytes[size - 1] & 1;   /* both ways of reading */
  uint8_t *mended = malloc(size + 1);
  memcpy(mended, bytes, size);
  for (size_t at = 0; at + BLOCK <= size; at += BLOCK)
    if (!is_zero((const char *)mended + at, BLOCK) && memcmp(mended + at + 257, "ustar", 5) == 0) mend_checksum(mended + at);
  data = mended;
  data_end = mended + size;
  open_entry = NULL;
  if (setjmp(failed) == 0) {
    untar();
    assert(!open_entry && data == data_end);
  }
  free(mended);
  return 0;
}
