/* frames.c: libFuzzer over everything an agent can send. Links frame.c and ring.c, and includes
 * proc.c to reset its state between inputs; spawn.c is replaced by
 * one that starts nothing but hands out real pipes, so that streams, ends and reconnects are exercised too.
 *
 * Input: a sequence of steps, each one byte `op` and, for most, `n` bytes of frames as the agent's socket would bring
 * them. Checked after each: the invariants of the rings and buffers (besides what the sanitizers see). */
#include "proc.c"

#include <assert.h>
#include <fcntl.h>

static pid_t last_pid = 100;
static uint64_t clock_ns;
static int far_ends[MAX_PROCS * 4], nfar;   /* the process' ends of its pipes */

uint64_t now_ns(void) { return clock_ns += 1000; }

static int near_end(bool reads) {
  int fd[2];
  if (nfar == MAX_PROCS * 4 || pipe2(fd, O_CLOEXEC | O_NONBLOCK) < 0) return -1;
  far_ends[nfar++] = fd[reads];
  return fd[!reads];
}

struct failure spawn_start(const struct spawn_request *r, struct spawned *s) {
  /* What the child does with the strings: all of it must be inside the payload. */
  size_t sum = 0;
  const uint8_t *p = r->argv.first;
  for (uint32_t i = 0; i < r->argv.n; i++) {
    uint32_t len = get_u32(p);
    for (uint32_t k = 0; k < len; k++) sum += p[4 + k];
    p += 4 + len;
  }
  if (sum % 7 == 1) return (struct failure){STAGE_FORK, EAGAIN};
  *s = (struct spawned){++last_pid, near_end(true), -1, near_end(true), -1};
  if (r->flags & (SPAWN_STDIN | SPAWN_TTY)) s->in_fd = near_end(false);
  if (!(r->flags & (SPAWN_TTY | SPAWN_STDERR_TO_STDOUT))) s->err_fd = near_end(true);
  return (struct failure){0, 0};
}

int spawn_signal(pid_t pid, enum signal_scope scope, int signo) {
  (void)pid;
  return scope == SCOPE_SANDBOX || signo != 64 ? 0 : ESRCH;
}
int spawn_resize(int fd, uint16_t rows, uint16_t cols) { return fd < 0 || rows > cols ? ENOTTY : 0; }
int spawn_type_eof(int fd) { return fd < 0 ? EBADF : 0; }

static void check(void) {
  assert(agent.out.start <= agent.out.end && agent.out.end <= OUT_BYTES && agent.in_len <= IN_BYTES);
  for (struct proc *p = procs; p < procs + MAX_PROCS; p++) {
    if (!p->id) continue;
    assert(ring_used(&p->in) <= p->in.size);
    for (int i = 0; i < 2; i++) {
      const struct output *o = &p->out[i];
      assert(o->ring.start <= o->ring.end && ring_used(&o->ring) <= o->ring.size);
      assert(o->sent >= o->ring.start && o->sent <= o->ring.end);
      assert(!o->eof || o->fd < 0);
    }
  }
}

static void hang_up(void) {
  agent.greeted = agent.closing = false;
  agent.in_len = agent.out.start = agent.out.end = 0;
}

/* The kernel's part: pipes are read and written, a process ends. */
static void world(uint8_t op) {
  struct rusage usage = {.ru_maxrss = op};
  for (struct proc *p = procs; p < procs + MAX_PROCS; p++) {
    if (!p->id) continue;
    if (p->failure_fd >= 0) proc_exec_result(p);
    for (int i = 0; i < 2; i++) proc_read(p, &p->out[i]);
    proc_write(p);
    if (op & 1 && p->pid) proc_reaped(p->pid, op & 2 ? SIGKILL : op << 8, &usage);
    if (op & 4) proc_close_input(p);
  }
  if (op & 8) proc_all_dead();
  if (op & 16) clock_ns += 1000000000u;
  proc_timers(now_ns());
  proc_finished(now_ns());
}

/* The program's part: what it writes, and how it closes. */
static void program(uint8_t op) {
  static const char text[3000];
  for (int i = 0; i < nfar; i++) {
    ssize_t n = write(far_ends[i], text, 1 + (size_t)op * 10);
    char dropped[4096];
    if (n < 0) n = read(far_ends[i], dropped, sizeof dropped);
    if (n < 0 && op > 250) {
      close(far_ends[i]);
      far_ends[i--] = far_ends[--nfar];
    }
  }
}

static void forget_everything(void) {
  while (nfar > 0) close(far_ends[--nfar]);
  world(1);
  world(8);
  for (struct proc *p = procs; p < procs + MAX_PROCS; p++) {
    if (!p->id) continue;
    p->state = STATE_FAILED;
    uint8_t frame[HEADER_BYTES] = {[4] = F_FORGET, [8] = (uint8_t)p->id, (uint8_t)(p->id >> 8), (uint8_t)(p->id >> 16), (uint8_t)(p->id >> 24)};
    hang_up();
    agent.greeted = true;
    memcpy(agent.in, frame, agent.in_len = sizeof frame);
    proc_dispatch();
    assert(!p->id);
  }
  hang_up();
  sandbox = LIFE;
  kill_all_ns = dead_ns = 0;
  look_again = false;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc;
  (void)argv;
  signal(SIGPIPE, SIG_IGN);
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  while (size > 0) {
    uint8_t op = *data++;
    size--;
    if (op == 0xff) hang_up();
    else if (op >= 0xc0) agent.out.start = agent.out.end = 0;   /* the socket took all */
    else if (op >= 0xa0) world(op);
    else if (op >= 0x80) program((uint8_t)(op << 3));
    else {
      size_t n = op < size ? op : size;
      if (n > IN_BYTES - agent.in_len) n = IN_BYTES - agent.in_len;
      memcpy(agent.in + agent.in_len, data, n);
      agent.in_len += n;
      data += n;
      size -= n;
      proc_dispatch();
      check();
    }
    proc_deliver();
    check();
  }
  forget_everything();
  return 0;
}
