/* ring.c: a bounded window of a byte stream. Offsets are absolute and never wrap in practice (2^64). */
#define _GNU_SOURCE
#include "init.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

bool ring_make(struct ring *r, uint32_t size) {
  void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return false;
  /* Children never look at it, and fork need not copy its page tables. */
  madvise(base, size, MADV_DONTFORK);
  *r = (struct ring){.base = base, .size = size};
  return true;
}

void ring_free(struct ring *r) {
  if (r->base) munmap(r->base, r->size);
  *r = (struct ring){.base = NULL};
}

uint32_t ring_used(const struct ring *r) { return (uint32_t)(r->end - r->start); }
uint32_t ring_room(const struct ring *r) { return r->size - ring_used(r); }

/* The n bytes at an absolute offset, as one or two pieces. */
static int pieces(const struct ring *r, uint64_t from, uint32_t n, struct iovec v[2]) {
  uint32_t at = (uint32_t)(from % r->size), first = r->size - at < n ? r->size - at : n;
  v[0] = (struct iovec){r->base + at, first};
  v[1] = (struct iovec){r->base, n - first};
  return n > first ? 2 : 1;
}

ssize_t ring_fill(struct ring *r, int fd) {
  struct iovec v[2];
  ssize_t n = readv(fd, v, pieces(r, r->end, ring_room(r), v));
  if (n > 0) r->end += (uint64_t)n;
  return n;
}

ssize_t ring_drain(struct ring *r, int fd) {
  struct iovec v[2];
  ssize_t n = writev(fd, v, pieces(r, r->start, ring_used(r), v));
  if (n > 0) r->start += (uint64_t)n;
  return n;
}

void ring_put(struct ring *r, const uint8_t *bytes, uint32_t n) {
  struct iovec v[2];
  pieces(r, r->end, n, v);
  memcpy(v[0].iov_base, bytes, v[0].iov_len);
  memcpy(v[1].iov_base, bytes + v[0].iov_len, v[1].iov_len);
  r->end += n;
}

void ring_copy(const struct ring *r, uint64_t from, uint8_t *into, uint32_t n) {
  struct iovec v[2];
  pieces(r, from, n, v);
  memcpy(into, v[0].iov_base, v[0].iov_len);
  memcpy(into + v[0].iov_len, v[1].iov_base, v[1].iov_len);
}
