/* io.c: all of so many bytes, read or written, buffered output, and arrays that grow; fail() is the program's. */
#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool give(int fd, const void *bytes, size_t n) {
  for (const char *from = bytes, *end = from + n; from < end; ) {
    ssize_t written = write(fd, from, (size_t)(end - from));
    if (written < 0 && errno != EINTR) return false;
    if (written > 0) from += written;
  }
  return true;
}

bool leave_hole(int fd, uint64_t n) {
  off_t end = lseek(fd, (off_t)n, SEEK_CUR);
  if (end < 0 && (errno == EINVAL || errno == EOVERFLOW)) errno = EFBIG;
  return end >= 0 && ftruncate(fd, end) == 0;
}

size_t take(int fd, void *bytes, size_t n, const char *path) {
  size_t taken = 0;
  while (taken < n) {
    ssize_t got = read(fd, (char *)bytes + taken, n - taken);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_errno(path);
    if (got == 0) break;
    taken += (size_t)got;
  }
  return taken;
}

static char out[CHUNK];
static size_t out_bytes;

void flush(void) {
  if (!give(1, out, out_bytes)) fail_errno("stdout");
  out_bytes = 0;
}

void put(const void *bytes, size_t n) {
  if (n > sizeof out - out_bytes) flush();
  if (n > sizeof out && !give(1, bytes, n)) fail_errno("stdout");
  if (n > sizeof out) return;
  memcpy(out + out_bytes, bytes, n);
  out_bytes += n;
}

void *grown(void *array, size_t *room, size_t need, size_t size) {
  if (need <= *room) return array;
  size_t more = *room * 2 > need ? *room * 2 : need + 16;
  void *larger = realloc(array, more * size);
  if (!larger) fail("path", ENOMEM, "", "");
  *room = more;
  return larger;
}
