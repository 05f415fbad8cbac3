/* frame.c: the wire format of proto.h, bytes to values and values to bytes. Nothing here has a state or an
 * effect, and nothing trusts a length: every read goes through `take`, which turns the reader bad for good. */
#include "init.h"

#include <string.h>

struct reader { const uint8_t *at; size_t left; bool bad; };

static const uint8_t *take(struct reader *r, size_t n) {
  static const uint8_t zeros[8];
  if (r->bad || r->left < n) {
    r->bad = true;
    return zeros;   /* for the fixed-size getters below, n <= 8; others look at `bad` first */
  }
  const uint8_t *p = r->at;
  r->at += n;
  r->left -= n;
  return p;
}

uint32_t get_u32(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint8_t u8(struct reader *r) { return take(r, 1)[0]; }
static uint16_t u16(struct reader *r) {
  const uint8_t *p = take(r, 2);
  return (uint16_t)(p[0] | p[1] << 8);
}
static uint32_t u32(struct reader *r) { return get_u32(take(r, 4)); }
static uint64_t u64(struct reader *r) {
  const uint8_t *p = take(r, 8);
  return get_u32(p) | (uint64_t)get_u32(p + 4) << 32;
}

static struct strings strings(struct reader *r, uint32_t n) {
  struct strings s = {.first = r->at, .n = n};
  for (uint32_t i = 0; i < n && !r->bad; i++) {
    uint32_t len = u32(r);
    const uint8_t *p = take(r, len);
    if (!r->bad && memchr(p, 0, len)) r->bad = true;
  }
  return s;
}

static struct reader reader_of(const struct frame *f) { return (struct reader){.at = f->payload, .left = f->len}; }
static bool used_up(const struct reader *r) { return !r->bad && r->left == 0; }

ssize_t frame_next(const uint8_t *b, size_t len, struct frame *f) {
  if (len < HEADER_BYTES) return 0;
  struct reader r = {.at = b, .left = len};
  f->len = u32(&r);
  f->type = u8(&r);
  f->stream = u8(&r);
  uint16_t zero = u16(&r);
  f->proc = u32(&r);
  f->payload = r.at;
  if (f->len > MAX_PAYLOAD || zero != 0 || f->type < F_HELLO || f->type > F_SHUTDOWN) return -1;
  if ((f->stream != STREAM_NONE) != (f->type == F_ACK) || f->stream > STREAM_STDERR) return -1;
  return r.left < f->len ? 0 : (ssize_t)(HEADER_BYTES + f->len);
}

bool frame_decode(const struct frame *f, struct message *m) {
  struct reader r = reader_of(f);
  *m = (struct message){.offset = 0};
  switch (f->type) {
    case F_HELLO: case F_SHUTDOWN:
      m->number = u32(&r);
      break;
    case F_STDIN:
      m->offset = u64(&r);
      m->len = (uint32_t)r.left;
      m->bytes = take(&r, r.left);
      if (m->len > MAX_DATA) return false;
      break;
    case F_STDIN_EOF: case F_ACK:
      m->offset = u64(&r);
      break;
    case F_SIGNAL:
      m->number = u32(&r);
      m->scope = u8(&r);
      if (m->number < 1 || m->number > 64 || m->scope > SCOPE_SANDBOX) return false;
      break;
    case F_RESIZE:
      m->rows = u16(&r);
      m->cols = u16(&r);
      break;
    case F_FORGET:
      break;
    default:
      return false;
  }
  return used_up(&r);
}

bool frame_decode_spawn(const struct frame *f, struct spawn_request *s) {
  struct reader r = reader_of(f);
  s->flags = u32(&r);
  s->uid = u32(&r);
  s->gid = u32(&r);
  s->ngroups = u32(&r);
  if (s->ngroups > MAX_GROUPS) return false;
  for (uint32_t i = 0; i < s->ngroups; i++) s->groups[i] = u32(&r);
  s->cap_bounding = u64(&r);
  s->cap_effective = u64(&r);
  s->cap_inheritable = u64(&r);
  s->cap_ambient = u64(&r);
  s->nrlimits = u32(&r);
  if (s->nrlimits > MAX_RLIMITS) return false;
  for (uint32_t i = 0; i < s->nrlimits; i++) {
    s->rlimits[i].resource = u32(&r);
    s->rlimits[i].soft = u64(&r);
    s->rlimits[i].hard = u64(&r);
  }
  s->timeout_ms = u32(&r);
  s->grace_ms = u32(&r);
  s->oom_score_adj = (int32_t)u32(&r);
  s->rows = u16(&r);
  s->cols = u16(&r);
  s->ring_bytes = u32(&r);
  s->cwd = strings(&r, 1);
  s->argv = strings(&r, u32(&r));
  s->env = strings(&r, u32(&r));
  /* -1 would mean "leave as it is" to setresuid(2): root. */
  return used_up(&r) && s->uid != UINT32_MAX && s->gid != UINT32_MAX && s->argv.n > 0 && (s->flags & ~(uint32_t)SPAWN_ALL_FLAGS) == 0 &&
         s->oom_score_adj >= -1000 && s->oom_score_adj <= 1000;
}

size_t out_room(struct out *o) {
  if (o->start > 0 && OUT_BYTES - o->end < OUT_BYTES / 2) {
    memmove(o->bytes, o->bytes + o->start, o->end - o->start);
    o->end -= o->start;
    o->start = 0;
  }
  return OUT_BYTES - o->end;
}

/* The caller has seen that out_room() is enough for the whole frame. */
uint8_t *out_reserve(struct out *o, uint32_t n) {
  uint8_t *p = o->bytes + o->end;
  o->end += n;
  return p;
}

static void put_u32(uint8_t *p, uint32_t v) {
  for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (8 * i));
}

void out_u8(struct out *o, uint8_t v) { *out_reserve(o, 1) = v; }
void out_u32(struct out *o, uint32_t v) { put_u32(out_reserve(o, 4), v); }
void out_u64(struct out *o, uint64_t v) {
  out_u32(o, (uint32_t)v);
  out_u32(o, (uint32_t)(v >> 32));
}

void out_begin(struct out *o, enum frame_type type, enum stream_id stream, uint32_t proc) {
  o->frame = o->end;
  out_u32(o, 0);
  out_u8(o, (uint8_t)type);
  out_u8(o, (uint8_t)stream);
  out_u8(o, 0);
  out_u8(o, 0);
  out_u32(o, proc);
}

void out_finish(struct out *o) { put_u32(o->bytes + o->frame, (uint32_t)(o->end - o->frame - HEADER_BYTES)); }
