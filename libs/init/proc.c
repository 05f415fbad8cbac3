/* proc.c: the table of processes. Frames from the agent act on it (proc_dispatch), what happens to processes is
 * written into it (proc_read, proc_reaped, ...), and what the agent has yet to hear is read off it
 * (proc_deliver). There is no queue of messages: what is owed follows from the state and from what this
 * connection was already told, so a reconnect only has to forget the latter, and memory has a bound.
 *
 *   STARTING --exec--> RUNNING --reaped--> EXITED --FORGET--> free
 *       \--failure----------------------> FAILED --FORGET--> free */
#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECOND 1000000000ull
#define MILLISECOND 1000000ull

struct proc procs[MAX_PROCS];
struct connection agent;   /* not initialised here: its megabytes would be in the file */

static enum { LIFE, MAIN_ENDED, SHUTDOWN, SHUTDOWN_KILLED } sandbox = LIFE;
static uint64_t kill_all_ns, dead_ns;   /* of SHUTDOWN: when SIGKILL is due; when the last process was gone */
static bool look_again;                 /* a SHUTDOWN began: no SIGCHLD tells that there are no children at all */

/* Where a SHUTDOWN nobody listens to gives up: long enough for an agent to restart, short for `berth down`. */
static const uint64_t LINGER = 5 * SECOND;

static struct proc *find(uint32_t id) {
  for (struct proc *p = procs; id && p < procs + MAX_PROCS; p++)
    if (p->id == id) return p;
  return NULL;
}

static struct proc *free_slot(void) {
  for (struct proc *p = procs; p < procs + MAX_PROCS; p++)
    if (!p->id) return p;
  return NULL;
}

static bool alive(const struct proc *p) { return p->id && p->state <= STATE_RUNNING; }

pid_t proc_main(void) {
  for (struct proc *p = procs; p < procs + MAX_PROCS; p++)
    if (alive(p) && (p->flags & SPAWN_MAIN)) return p->pid;
  return 0;
}

static void close_fd(int *fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

/* ---- answers ---- */

static void answer_error(uint32_t proc, int error, const char *message) {
  uint32_t len = (uint32_t)strlen(message);
  out_begin(&agent.out, F_ERROR, STREAM_NONE, proc);
  out_u32(&agent.out, (uint32_t)error);
  out_u32(&agent.out, len);
  memcpy(out_reserve(&agent.out, len), message, len);
  out_finish(&agent.out);
}

static void protocol_error(int error, const char *message) {
  answer_error(0, error, message);
  agent.closing = true;
}

static void answer_failed(uint32_t id, struct failure f) {
  out_begin(&agent.out, F_FAILED, STREAM_NONE, id);
  out_u8(&agent.out, f.stage);
  out_u32(&agent.out, (uint32_t)f.error);
  out_finish(&agent.out);
}

static void answer_state(const struct proc *p) {
  out_begin(&agent.out, F_STATE, STREAM_NONE, p->id);
  out_u8(&agent.out, (uint8_t)p->state);
  out_u32(&agent.out, (uint32_t)p->pid);
  for (int i = 0; i < 2; i++) {
    out_u64(&agent.out, p->out[i].ring.start);
    out_u64(&agent.out, p->out[i].ring.end);
  }
  out_u64(&agent.out, p->in.end);
  out_finish(&agent.out);
}

/* ---- streams ---- */

/* EXIT needs everything that is readable now, but no more: a grandchild may write for ever. A terminal cannot
 * tell how much that is, but its reads come to EAGAIN or EIO, since it was hung up when its leader died. */
static void bound_output(struct proc *p, struct output *o) {
  int readable = 0;
  if (!o->exists || o->eof) return;
  bool known = !(p->flags & SPAWN_TTY) && ioctl(o->fd, FIONREAD, &readable) == 0;
  o->drain_until = known ? o->ring.end + (uint64_t)readable : UINT64_MAX;
  o->bounded = true;
  proc_read(p, o);
}

static bool drained(const struct output *o) {
  return !o->exists || o->eof || (o->bounded && o->ring.end >= o->drain_until);
}

/* Nothing of the sandbox lives; a write end that was passed out of it over a socket does not count. */
static void end_main_output(const struct proc *p, struct output *o) {
  if (!(p->flags & SPAWN_MAIN) || p->state != STATE_EXITED || !o->bounded || o->eof || !drained(o)) return;
  o->eof = true;
  close_fd(&o->fd);
}

/* A terminal gives 4 KiB at a time, however much it has: one such read a frame would be most of what a flood costs. */
enum { TTY_READS = 16 };

void proc_read(struct proc *p, struct output *o) {
  if (o->fd < 0 || ring_room(&o->ring) == 0) return;
  ssize_t n = ring_fill(&o->ring, o->fd);
  if (p->flags & SPAWN_TTY)
    for (int i = 1; i < TTY_READS && n > 0 && ring_room(&o->ring) > 0; i++) n = ring_fill(&o->ring, o->fd);
  if (n < 0 && errno == EINTR) return;
  if (n < 0 && errno == EAGAIN) {
    if (o->bounded) o->drain_until = o->ring.end;
  } else if (n <= 0) {   /* end of file; EIO is a terminal's */
    o->eof = true;
    close_fd(&o->fd);
  }
  end_main_output(p, o);
}

/* Whatever input is left or yet to come is taken and dropped. */
void proc_close_input(struct proc *p) {
  close_fd(&p->in_fd);
  p->in.start = p->in.end;
}

static void end_input(struct proc *p) {
  if (!(p->flags & SPAWN_TTY)) proc_close_input(p);
  else if (spawn_type_eof(p->in_fd) == EAGAIN) return;
  p->in_finished = true;
}

void proc_write(struct proc *p) {
  if (p->in_fd >= 0 && ring_used(&p->in) > 0) {
    ssize_t n = ring_drain(&p->in, p->in_fd);
    if (n < 0 && errno != EAGAIN && errno != EINTR) proc_close_input(p);
  }
  if (p->in_fd >= 0 && p->in_ended && !p->in_finished && ring_used(&p->in) == 0) end_input(p);
}

bool proc_wants_write(const struct proc *p) {
  return p->in_fd >= 0 && (ring_used(&p->in) > 0 || (p->in_ended && !p->in_finished));
}

/* ---- start ---- */

static void release(struct proc *p) {
  close_fd(&p->failure_fd);
  close_fd(&p->in_fd);
  for (int i = 0; i < 2; i++) {
    close_fd(&p->out[i].fd);
    ring_free(&p->out[i].ring);
  }
  ring_free(&p->in);
  *p = (struct proc){.id = 0};
}

static uint32_t ring_size(uint32_t asked) {
  uint32_t size = asked == 0 ? DEFAULT_RING : asked < MIN_RING ? MIN_RING : asked > MAX_RING ? MAX_RING : asked;
  return (size + 4095) & ~4095u;
}

static bool make_rings(struct proc *p, const struct spawn_request *r) {
  uint32_t size = ring_size(r->ring_bytes);
  p->out[0].exists = true;
  p->out[1].exists = !(r->flags & (SPAWN_TTY | SPAWN_STDERR_TO_STDOUT));
  if ((r->flags & (SPAWN_TTY | SPAWN_STDIN)) && !ring_make(&p->in, STDIN_WINDOW)) return false;
  return ring_make(&p->out[0].ring, size) && (!p->out[1].exists || ring_make(&p->out[1].ring, size));
}

static void start(struct proc *p, uint32_t id, const struct spawn_request *r) {
  struct spawned s = {-1, -1, -1, -1, -1};
  *p = (struct proc){.id = id, .flags = r->flags, .failure_fd = -1, .in_fd = -1, .forked_ns = now_ns()};
  p->out[0].fd = p->out[1].fd = -1;
  p->failure = make_rings(p, r) ? spawn_start(r, &s) : (struct failure){STAGE_SETUP, errno};
  if (p->failure.stage) {
    p->state = STATE_FAILED;
    return;
  }
  p->pid = s.pid;
  p->failure_fd = s.failure_fd;
  p->in_fd = s.in_fd;
  p->out[0].fd = s.out_fd;
  p->out[1].fd = s.err_fd;
  p->grace_ns = r->grace_ms * MILLISECOND;
  if (r->timeout_ms) p->deadline_ns = p->forked_ns + r->timeout_ms * MILLISECOND;
}

void proc_exec_result(struct proc *p) {
  struct failure f;
  ssize_t n = read(p->failure_fd, &f, sizeof f);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  close_fd(&p->failure_fd);
  p->state = STATE_RUNNING;
  p->started_ns = now_ns();
  if (n != sizeof f) return;
  p->state = STATE_FAILED;   /* its zombie is reaped as anybody's */
  p->failure = f;
  p->pid = 0;
  proc_close_input(p);
  for (int i = 0; i < 2; i++) close_fd(&p->out[i].fd);
}

/* ---- end ---- */

void proc_reaped(pid_t pid, int status, const struct rusage *usage) {
  struct proc *p = procs;
  while (p < procs + MAX_PROCS && !(alive(p) && p->pid == pid)) p++;
  if (p == procs + MAX_PROCS) return;   /* an orphan of the sandbox */
  if (p->state == STATE_STARTING) proc_exec_result(p);   /* what the child wrote is there: it is dead */
  if (p->state == STATE_FAILED) return;
  p->state = STATE_EXITED;
  p->status = status;
  p->usage = *usage;
  p->wall_ns = now_ns() - p->forked_ns;
  proc_close_input(p);
  /* What was to be ended in time is its group, not its leader alone. */
  if (p->cause == CAUSE_TIMEOUT) spawn_signal(pid, SCOPE_GROUP, SIGKILL);
  if (!(p->flags & SPAWN_MAIN)) {
    for (int i = 0; i < 2; i++) bound_output(p, &p->out[i]);
    return;
  }
  spawn_signal(0, SCOPE_SANDBOX, SIGKILL);
  for (struct proc *o = procs; o < procs + MAX_PROCS; o++)
    if (alive(o) && o->cause == CAUSE_ITSELF) o->cause = CAUSE_MAIN_ENDED;
  if (sandbox == LIFE) sandbox = MAIN_ENDED;
}

void proc_all_dead(void) {
  if (sandbox == LIFE) return;
  for (struct proc *p = procs; p < procs + MAX_PROCS; p++)
    if (p->id && p->state == STATE_EXITED && (p->flags & SPAWN_MAIN))
      for (int i = 0; i < 2; i++)
        if (!p->out[i].bounded) bound_output(p, &p->out[i]);
  if (sandbox == MAIN_ENDED) sandbox = LIFE;
  else if (!dead_ns) dead_ns = now_ns();
}

void proc_shutdown(uint32_t grace_ms) {
  uint64_t due = now_ns() + grace_ms * MILLISECOND;
  if (sandbox >= SHUTDOWN) {   /* a second one may only shorten the grace */
    if (due < kill_all_ns) kill_all_ns = due;
    return;
  }
  for (struct proc *p = procs; p < procs + MAX_PROCS; p++)
    if (alive(p) && p->cause == CAUSE_ITSELF) p->cause = CAUSE_SHUTDOWN;
  kill_all_ns = due;
  sandbox = SHUTDOWN;
  look_again = true;
  if (grace_ms) spawn_signal(0, SCOPE_SANDBOX, SIGTERM);
}

static void overdue(struct proc *p, uint64_t now) {
  bool first = p->cause != CAUSE_TIMEOUT;
  p->cause = CAUSE_TIMEOUT;
  p->deadline_ns = first && p->grace_ns ? now + p->grace_ns : 0;
  if (p->deadline_ns) spawn_signal(p->pid, SCOPE_GROUP, SIGTERM);
  else spawn_signal(p->pid, p->flags & SPAWN_MAIN ? SCOPE_SANDBOX : SCOPE_GROUP, SIGKILL);
}

uint64_t proc_timers(uint64_t now) {
  uint64_t next = look_again ? now : dead_ns ? dead_ns + LINGER : 0;
  look_again = false;
  if (sandbox == SHUTDOWN && now >= kill_all_ns) {
    spawn_signal(0, SCOPE_SANDBOX, SIGKILL);
    sandbox = SHUTDOWN_KILLED;
  }
  else if (sandbox == SHUTDOWN && (!next || kill_all_ns < next)) next = kill_all_ns;
  for (struct proc *p = procs; p < procs + MAX_PROCS; p++) {
    if (!alive(p) || !p->deadline_ns) continue;
    if (now >= p->deadline_ns) overdue(p, now);
    if (p->deadline_ns && (!next || p->deadline_ns < next)) next = p->deadline_ns;
  }
  return next;
}

static bool all_told(void) {
  for (struct proc *p = procs; p < procs + MAX_PROCS; p++)
    if (p->id && !(p->state == STATE_FAILED ? p->told_start : p->told_exit)) return false;
  return agent.out.start == agent.out.end;
}

bool proc_finished(uint64_t now) {
  return dead_ns && (now >= dead_ns + LINGER || (agent.fd >= 0 && agent.greeted && all_told()));
}

/* ---- frames from the agent ---- */

static void on_hello(const struct message *m) {
  if (m->number != PROTO_VERSION) return protocol_error(EPROTONOSUPPORT, "HELLO: this init speaks version 1");
  uint32_t known = 0;
  for (struct proc *p = procs; p < procs + MAX_PROCS; p++) known += p->id != 0;
  agent.greeted = true;
  out_begin(&agent.out, F_HELLO_REPLY, STREAM_NONE, 0);
  out_u32(&agent.out, PROTO_VERSION);
  out_u32(&agent.out, known);
  out_finish(&agent.out);
  for (struct proc *p = procs; p < procs + MAX_PROCS; p++) {
    if (!p->id) continue;
    answer_state(p);   /* nothing was written to this connection before: all of them fit */
    p->told_start = p->told_exit = false;
    p->in_acked = UINT64_MAX;
    for (int i = 0; i < 2; i++) {
      p->out[i].sent = p->out[i].ring.start;
      p->out[i].eof_sent = false;
    }
  }
}

static void on_spawn(const struct frame *f) {
  static struct spawn_request r;
  struct proc *p = find(f->proc);
  if (p) {
    p->told_start = p->told_exit = false;
    return;
  }
  if (!frame_decode_spawn(f, &r)) return answer_error(f->proc, EINVAL, "SPAWN: malformed");
  if (sandbox != LIFE) return answer_failed(f->proc, (struct failure){STAGE_FORK, ESHUTDOWN});
  if ((r.flags & SPAWN_MAIN) && proc_main()) return answer_failed(f->proc, (struct failure){STAGE_SETUP, EEXIST});
  p = free_slot();
  if (!p) return answer_failed(f->proc, (struct failure){STAGE_FORK, ENFILE});
  start(p, f->proc, &r);
}

static void on_stdin(struct proc *p, const struct message *m) {
  uint64_t expected = p->in.end;
  if (!p->in.base) return answer_error(p->id, EBADF, "STDIN: spawned without");
  if (m->offset > expected) return answer_error(p->id, EINVAL, "STDIN: gap before the offset");
  uint64_t repeated = expected - m->offset;
  if (repeated >= m->len) return;
  uint32_t fresh = m->len - (uint32_t)repeated;
  if (p->in_ended) return answer_error(p->id, EPIPE, "STDIN: after STDIN_EOF");
  if (p->in_fd < 0) {   /* it closed its stdin: take and drop */
    p->in.start = p->in.end = expected + fresh;
    return;
  }
  if (fresh > ring_room(&p->in)) return answer_error(p->id, ENOBUFS, "STDIN: more than 64 KiB beyond STDIN_ACK");
  ring_put(&p->in, m->bytes + repeated, fresh);
  proc_write(p);
}

static void on_stdin_eof(struct proc *p, const struct message *m) {
  if (!p->in.base) return answer_error(p->id, EBADF, "STDIN_EOF: spawned without");
  if (m->offset != p->in.end) return answer_error(p->id, EINVAL, "STDIN_EOF: not at the end of the input sent");
  p->in_ended = true;
  proc_write(p);
}

static void on_signal(const struct frame *f, struct proc *p, const struct message *m) {
  bool all = m->scope == SCOPE_SANDBOX;
  int error = ESRCH;
  if (all || (p && alive(p)))
    error = spawn_signal(all ? 0 : p->pid, (enum signal_scope)m->scope, (int)m->number);
  if (error && !(all && error == ESRCH)) answer_error(f->proc, error, "SIGNAL: no such process");
}

static void on_resize(struct proc *p, const struct message *m) {
  int error = p->flags & SPAWN_TTY ? (p->out[0].fd < 0 ? 0 : spawn_resize(p->out[0].fd, m->rows, m->cols)) : ENOTTY;
  if (error) answer_error(p->id, error, "RESIZE: no terminal");
}

static void on_ack(struct proc *p, const struct frame *f, const struct message *m) {
  struct output *o = &p->out[f->stream - 1];
  if (m->offset > o->ring.end) return answer_error(p->id, EINVAL, "ACK: beyond the data there is");
  if (m->offset > o->ring.start) o->ring.start = m->offset;
  if (o->sent < o->ring.start) o->sent = o->ring.start;   /* what an earlier connection brought home */
}

static void on_forget(struct proc *p) {
  if (p->state == STATE_FAILED || p->ever_told_exit) release(p);
  else answer_error(p->id, EBUSY, "FORGET: before its EXIT");
}

static void act(const struct frame *f) {
  struct message m;
  if (f->type == F_SPAWN) return f->proc ? on_spawn(f) : protocol_error(EPROTO, "SPAWN: proc is 0");
  if (!frame_decode(f, &m)) return protocol_error(EPROTO, "malformed payload");
  if (f->type == F_HELLO) return agent.greeted ? protocol_error(EPROTO, "HELLO: twice") : on_hello(&m);
  if (f->type == F_SHUTDOWN) return proc_shutdown(m.number);
  struct proc *p = find(f->proc);
  if (f->type == F_SIGNAL && (f->proc || m.scope == SCOPE_SANDBOX)) return on_signal(f, p, &m);
  if (!f->proc) return protocol_error(EPROTO, "proc is 0");
  if (!p) {
    if (f->type != F_FORGET) answer_error(f->proc, ESRCH, "unknown proc");
    return;
  }
  switch (f->type) {
    case F_STDIN: return on_stdin(p, &m);
    case F_STDIN_EOF: return on_stdin_eof(p, &m);
    case F_RESIZE: return on_resize(p, &m);
    case F_ACK: return on_ack(p, f, &m);
    default: return on_forget(p);
  }
}

void proc_dispatch(void) {
  size_t done = 0;
  struct frame f;
  while (!agent.closing && out_room(&agent.out) >= OUT_RESERVE) {
    ssize_t n = frame_next(agent.in + done, agent.in_len - done, &f);
    if (n == 0) break;
    if (n < 0) protocol_error(EPROTO, "malformed frame");
    else if (!agent.greeted && f.type != F_HELLO) protocol_error(EPROTO, "HELLO must come first");
    else act(&f);
    if (n > 0) done += (size_t)n;
  }
  agent.in_len -= done;
  if (done && agent.in_len) memmove(agent.in, agent.in + done, agent.in_len);
  /* A SPAWN of megabytes is rare: its pages are not kept charged to the sandbox. */
  if (done > MAX_PAYLOAD / 4 && agent.in_len == 0) madvise(agent.in, sizeof agent.in & ~4095ul, MADV_DONTNEED);
}

/* ---- frames to the agent ---- */

static void tell_started(struct proc *p) {
  out_begin(&agent.out, F_STARTED, STREAM_NONE, p->id);
  out_u32(&agent.out, (uint32_t)p->pid);
  out_u64(&agent.out, p->started_ns);
  out_finish(&agent.out);
}

static void tell_stdin_ack(struct proc *p) {
  out_begin(&agent.out, F_STDIN_ACK, STREAM_NONE, p->id);
  out_u64(&agent.out, p->in.start);
  out_finish(&agent.out);
  p->in_acked = p->in.start;
}

static void tell_exit(struct proc *p) {
  const struct rusage *u = &p->usage;
  bool signaled = WIFSIGNALED(p->status);
  out_begin(&agent.out, F_EXIT, STREAM_NONE, p->id);
  out_u8(&agent.out, signaled ? EXIT_SIGNAL : EXIT_CODE);
  out_u32(&agent.out, (uint32_t)(signaled ? WTERMSIG(p->status) : WEXITSTATUS(p->status)));
  out_u8(&agent.out, (uint8_t)p->cause);
  out_u8(&agent.out, signaled && WCOREDUMP(p->status));
  out_u64(&agent.out, (uint64_t)u->ru_utime.tv_sec * 1000000 + (uint64_t)u->ru_utime.tv_usec);
  out_u64(&agent.out, (uint64_t)u->ru_stime.tv_sec * 1000000 + (uint64_t)u->ru_stime.tv_usec);
  out_u64(&agent.out, (uint64_t)u->ru_maxrss * 1024);
  out_u64(&agent.out, p->wall_ns);
  out_finish(&agent.out);
  p->told_exit = p->ever_told_exit = true;
}

enum { CHUNK = 32 << 10 };   /* per stream and turn: small enough that others come through quickly */

/* False: no room for more of it now. */
static bool tell_output(struct proc *p, int i) {
  struct output *o = &p->out[i];
  uint64_t waiting = o->ring.end - o->sent;
  uint32_t n = waiting < CHUNK ? (uint32_t)waiting : CHUNK;
  if (n > 0) {
    if (out_room(&agent.out) < OUT_RESERVE + HEADER_BYTES + 8 + n) return false;
    out_begin(&agent.out, F_DATA, (enum stream_id)(i + 1), p->id);
    out_u64(&agent.out, o->sent);
    ring_copy(&o->ring, o->sent, out_reserve(&agent.out, n), n);
    out_finish(&agent.out);
    o->sent += n;
  }
  if (o->eof && !o->eof_sent && o->sent == o->ring.end) {
    out_begin(&agent.out, F_EOF, (enum stream_id)(i + 1), p->id);
    out_u64(&agent.out, o->ring.end);
    out_finish(&agent.out);
    o->eof_sent = true;
  }
  return true;
}

static bool output_told(const struct proc *p, const struct output *o) {
  if (!drained(o) || (o->exists && (p->flags & SPAWN_MAIN) && !o->eof_sent)) return false;
  return !o->exists || o->sent >= (o->eof ? o->ring.end : o->drain_until);
}

/* All frames but DATA of one turn fit in half the reserve. True: something of it may still wait. */
static bool tell(struct proc *p) {
  if (out_room(&agent.out) < OUT_RESERVE + 512) return false;
  if (p->state == STATE_STARTING) return false;
  if (!p->told_start) {
    if (p->state == STATE_FAILED) answer_failed(p->id, p->failure);
    else tell_started(p);
    p->told_start = true;
  }
  if (p->state == STATE_FAILED) return false;
  if (p->in.base && p->in.start != p->in_acked) tell_stdin_ack(p);
  bool more = false;
  for (int i = 0; i < 2; i++)
    if (p->out[i].exists && tell_output(p, i)) more |= p->out[i].sent < p->out[i].ring.end;
  if (p->state == STATE_EXITED && !p->told_exit && output_told(p, &p->out[0]) && output_told(p, &p->out[1]))
    tell_exit(p);
  return more;
}

void proc_deliver(void) {
  static int turn;   /* nobody is always first */
  bool more = agent.greeted && !agent.closing;
  while (more) {
    more = false;
    for (int i = 0; i < MAX_PROCS; i++) {
      struct proc *p = &procs[(turn + i) % MAX_PROCS];
      if (p->id) more |= tell(p);
    }
    turn = (turn + 1) % MAX_PROCS;
  }
}
