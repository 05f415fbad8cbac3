/* init.h: the parts of berth-init and what they ask of each other.
 *
 *   init.c   poll loop, signals, reaping, timers, connection
 *   proc.c   table of processes: what a frame does to one, and what is owed to the agent about it
 *   spawn.c  all that touches other processes: fork to exec, kill, terminal size
 *   frame.c  bytes to values and back; no state
 *   ring.c   a bounded window of a byte stream, addressed by absolute offsets
 *
 * fuzz/ links proc.c, frame.c and ring.c with a spawn.c that starts nothing. */
#ifndef BERTH_INIT_H
#define BERTH_INIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "proto.h"

/* ---- ring.c ---- bytes [start, end) of a stream are held; end - start <= size. */
struct ring { uint8_t *base; uint32_t size; uint64_t start, end; };

bool ring_make(struct ring *r, uint32_t size);   /* false: errno is set */
void ring_free(struct ring *r);
uint32_t ring_used(const struct ring *r);
uint32_t ring_room(const struct ring *r);
ssize_t ring_fill(struct ring *r, int fd);       /* as read(2), into the free part */
ssize_t ring_drain(struct ring *r, int fd);      /* as write(2), from the used part, and drops what was written */
void ring_put(struct ring *r, const uint8_t *bytes, uint32_t n);               /* n <= room */
void ring_copy(const struct ring *r, uint64_t from, uint8_t *into, uint32_t n);  /* [from, from+n) is held */

/* ---- frame.c ---- */
struct frame { uint8_t type, stream; uint32_t proc, len; const uint8_t *payload; };

/* n strings one after the other, each u32 length + bytes; checked: inside the payload, no NUL. */
struct strings { const uint8_t *first; uint32_t n; };

struct spawn_request {
  uint32_t flags, uid, gid, ngroups, groups[MAX_GROUPS];
  uint64_t cap_bounding, cap_effective, cap_inheritable, cap_ambient;
  uint32_t nrlimits;
  struct { uint32_t resource; uint64_t soft, hard; } rlimits[MAX_RLIMITS];
  uint32_t timeout_ms, grace_ms, ring_bytes;
  int32_t oom_score_adj;
  uint16_t rows, cols;
  struct strings cwd, argv, env;
};

/* A decoded frame other than SPAWN; which fields count depends on the type. */
struct message {
  uint64_t offset;
  uint32_t number;             /* version, signo, grace_ms */
  uint8_t scope;
  uint16_t rows, cols;
  const uint8_t *bytes; uint32_t len;
};

/* Bytes of the first frame in the buffer; 0 when it is not whole yet, -1 when it can never be one. */
ssize_t frame_next(const uint8_t *buffer, size_t len, struct frame *f);
bool frame_decode(const struct frame *f, struct message *m);          /* false: malformed */
bool frame_decode_spawn(const struct frame *f, struct spawn_request *r);
uint32_t get_u32(const uint8_t *p);

enum { OUT_BYTES = 160 << 10, OUT_RESERVE = 4 << 10 };
/* Frames on their way to the agent. Data leaves OUT_RESERVE free, so that one answer always fits. */
struct out { uint8_t bytes[OUT_BYTES]; size_t start, end, frame; };

size_t out_room(struct out *o);
void out_begin(struct out *o, enum frame_type type, enum stream_id stream, uint32_t proc);
uint8_t *out_reserve(struct out *o, uint32_t n);
void out_u8(struct out *o, uint8_t v);
void out_u32(struct out *o, uint32_t v);
void out_u64(struct out *o, uint64_t v);
void out_finish(struct out *o);

/* ---- spawn.c ---- */
struct spawned { pid_t pid; int failure_fd, in_fd, out_fd, err_fd; };   /* -1 where there is none */
struct failure { uint8_t stage; int32_t error; };

/* Forks and returns at once; how it went arrives on failure_fd: a struct failure, or end of file after exec. */
struct failure spawn_start(const struct spawn_request *r, struct spawned *s);
int spawn_signal(pid_t pid, enum signal_scope scope, int signo);        /* 0 or errno */
int spawn_resize(int terminal_fd, uint16_t rows, uint16_t cols);        /* 0 or errno */
int spawn_type_eof(int terminal_fd);                                    /* VEOF while it edits lines; 0 or errno */

/* ---- proc.c ---- */
struct output {
  int fd;
  bool exists, eof, eof_sent;
  bool bounded;              /* the process is gone: read to drain_until and no further before EXIT */
  uint64_t drain_until, sent;
  struct ring ring;
};

struct proc {
  uint32_t id, flags;        /* id 0: free slot */
  enum proc_state state;
  pid_t pid;
  int failure_fd, in_fd;
  struct output out[2];      /* stdout, stderr */
  struct ring in;
  uint64_t in_acked;
  bool in_ended;             /* STDIN_EOF came */
  bool in_finished;          /* and was carried out */
  bool told_start, told_exit, ever_told_exit;
  struct failure failure;
  uint64_t forked_ns, started_ns, deadline_ns, grace_ns;   /* CLOCK_MONOTONIC; deadline 0: none */
  enum exit_cause cause;
  int status;
  struct rusage usage;
  uint64_t wall_ns;
};

enum { IN_BYTES = HEADER_BYTES + MAX_PAYLOAD };
struct connection {
  int fd;                    /* -1: no agent */
  bool greeted, closing;     /* closing: ERROR was written, close once it is sent */
  size_t in_len;
  _Alignas(4096) uint8_t in[IN_BYTES];
  struct out out;
};

extern struct proc procs[MAX_PROCS];
extern struct connection agent;

uint64_t now_ns(void);
void proc_dispatch(void);                       /* carries out the whole frames in agent.in */
void proc_deliver(void);                        /* what is owed, into agent.out, as far as it fits */
void proc_read(struct proc *p, struct output *o);
void proc_write(struct proc *p);
void proc_close_input(struct proc *p);
bool proc_wants_write(const struct proc *p);
void proc_exec_result(struct proc *p);          /* failure_fd is readable */
void proc_reaped(pid_t pid, int status, const struct rusage *usage);
void proc_all_dead(void);                       /* no child is left */
uint64_t proc_timers(uint64_t now);             /* carries out what is due; the next deadline, 0: none */
pid_t proc_main(void);                          /* pid of a live MAIN, or 0 */
void proc_shutdown(uint32_t grace_ms);
bool proc_finished(uint64_t now);               /* SHUTDOWN is done: exit */

#endif
