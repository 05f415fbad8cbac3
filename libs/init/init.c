/* init.c: PID 1 of a sandbox. One poll loop; what to wait for is worked out anew from the table each time round,
 * so there is no registration to get out of step with it. See README.md for what it promises. */
#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LISTEN_FD = 3 };
enum { FIXED = 3, PER_PROC = 4 };   /* listener, agent, signals; failure, stdin, stdout, stderr */

static const int forwarded[] = {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2};
enum { FOREIGN_GRACE_MS = 10000 };  /* SIGTERM by the OCI runtime with nothing to forward it to */

uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- the agent's connection ---- */

static void hang_up(void) {
  if (agent.fd >= 0) close(agent.fd);
  agent.fd = -1;
  agent.greeted = agent.closing = false;
  agent.in_len = agent.out.start = agent.out.end = 0;
}

static void accept_agent(void) {
  int fd = accept4(LISTEN_FD, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) return;   /* it went away again, or fds are short: poll tells once more */
  hang_up();            /* the newer one is the agent that was started again */
  agent.fd = fd;
}

static void receive(void) {
  ssize_t n = recv(agent.fd, agent.in + agent.in_len, IN_BYTES - agent.in_len, 0);
  if (n > 0) agent.in_len += (size_t)n;
  else if (n == 0 || (errno != EAGAIN && errno != EINTR)) hang_up();
}

/* False: the socket takes no more now, or nothing is left. */
static bool flush(void) {
  struct out *o = &agent.out;
  if (agent.fd < 0 || o->start == o->end) return false;
  ssize_t n = send(agent.fd, o->bytes + o->start, o->end - o->start, MSG_NOSIGNAL);
  if (n < 0 && errno != EAGAIN && errno != EINTR) hang_up();
  if (n <= 0) return false;
  o->start += (size_t)n;
  if (o->start == o->end) o->start = o->end = 0;
  return true;
}

static void converse(void) {
  do {
    if (agent.fd < 0) return;
    proc_dispatch();
    proc_deliver();
  } while (flush());
  if (agent.closing && agent.out.end == 0) hang_up();
}

/* ---- signals and children ---- */

static void forward(const struct signalfd_siginfo *s) {
  pid_t to = proc_main();
  bool from_outside = s->ssi_pid == 0;
  if (to) spawn_signal(to, SCOPE_GROUP, (int)s->ssi_signo);
  else if (from_outside && (s->ssi_signo == SIGTERM || s->ssi_signo == SIGINT)) proc_shutdown(FOREIGN_GRACE_MS);
}

static void read_signals(int fd) {
  struct signalfd_siginfo s;
  while (read(fd, &s, sizeof s) == sizeof s)
    if (s.ssi_signo != SIGCHLD) forward(&s);
}

/* True: there may be more. A storm of orphans gets its turns between others' input and output. */
static bool reap(void) {
  for (int i = 0; i < 256; i++) {
    int status;
    struct rusage usage;
    pid_t pid = wait4(-1, &status, WNOHANG, &usage);
    if (pid < 0 && errno == ECHILD) proc_all_dead();
    if (pid <= 0) return false;
    proc_reaped(pid, status, &usage);
  }
  return true;
}

/* ---- the loop ---- */

static struct pollfd polled[FIXED + MAX_PROCS * PER_PROC];
static struct { struct proc *proc; int role; } whose[FIXED + MAX_PROCS * PER_PROC];

static int watch(int n, struct proc *p, int role, int fd, short events) {
  polled[n] = (struct pollfd){.fd = fd, .events = events};
  whose[n].proc = p;
  whose[n].role = role;
  return n + 1;
}

enum { FAILURE, STDIN, STDOUT, STDERR };

static int watch_procs(int n) {
  for (struct proc *p = procs; p < procs + MAX_PROCS; p++) {
    if (!p->id) continue;
    if (p->failure_fd >= 0) n = watch(n, p, FAILURE, p->failure_fd, POLLIN);
    /* A pipe's closed far end shows as POLLERR, asked or not; a terminal's as POLLHUP on reading. */
    if (proc_wants_write(p)) n = watch(n, p, STDIN, p->in_fd, POLLOUT);
    else if (p->in_fd >= 0 && !(p->flags & SPAWN_TTY)) n = watch(n, p, STDIN, p->in_fd, 0);
    for (int i = 0; i < 2; i++)
      if (p->out[i].fd >= 0 && ring_room(&p->out[i].ring)) n = watch(n, p, STDOUT + i, p->out[i].fd, POLLIN);
  }
  return n;
}

static void handle(struct proc *p, int role, short events) {
  switch (role) {
    case FAILURE:
      if (p->failure_fd >= 0) proc_exec_result(p);
      break;
    case STDIN:
      if (events & (POLLERR | POLLHUP | POLLNVAL)) proc_close_input(p);
      else proc_write(p);
      break;
    default:
      proc_read(p, &p->out[role - STDOUT]);
  }
}

static int timeout_ms(uint64_t next, uint64_t now) {
  if (!next) return -1;
  uint64_t ms = next <= now ? 0 : (next - now + 999999) / 1000000;
  return ms > 3600000 ? 3600000 : (int)ms;
}

static void loop(int signals) {
  for (bool more_children = false;;) {
    uint64_t now = now_ns(), next = proc_timers(now);
    if (proc_finished(now)) return;
    short agent_events = (agent.in_len < IN_BYTES && !agent.closing && out_room(&agent.out) >= OUT_RESERVE) ? POLLIN : 0;
    if (agent.out.start < agent.out.end) agent_events |= POLLOUT;
    watch(0, NULL, 0, LISTEN_FD, POLLIN);
    watch(1, NULL, 0, agent.fd, agent_events);
    watch(2, NULL, 0, signals, POLLIN);
    int n = watch_procs(FIXED);
    if (poll(polled, (nfds_t)n, more_children ? 0 : timeout_ms(next, now)) < 0) continue;
    for (int i = FIXED; i < n; i++)
      if (polled[i].revents) handle(whose[i].proc, whose[i].role, polled[i].revents);
    if (polled[2].revents) read_signals(signals);
    more_children = reap();
    if (polled[1].revents & POLLIN) receive();
    else if (polled[1].revents & (POLLERR | POLLHUP)) hang_up();
    if (polled[0].revents) accept_agent();
    converse();
  }
}

static int listen_to_signals(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  for (size_t i = 0; i < sizeof forwarded / sizeof *forwarded; i++) sigaddset(&set, forwarded[i]);
  signal(SIGPIPE, SIG_IGN);
  sigprocmask(SIG_SETMASK, &set, NULL);
  return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

static bool is_listener(int fd) {
  int yes = 0;
  socklen_t len = sizeof yes;
  return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &yes, &len) == 0 && yes;
}

static bool use_dev_null(void) {
  int fd = open("/dev/null", O_RDWR);
  bool done = fd >= 0 && dup2(fd, 0) == 0 && dup2(fd, 1) == 1 && dup2(fd, 2) == 2;
  if (fd > 2) close(fd);
  return done;
}

static int refuse(const char *why) {
  fprintf(stderr, "berth-init: %s: %s\n", why, strerror(errno));
  return 1;
}

int main(int argc, char **argv) {
  if (argc == 2 && strcmp(argv[1], "--version") == 0) return printf("berth-init %d\n", PROTO_VERSION) < 0;
  /* kill(-1) is a sandbox's end; on a host it would be the host's. */
  errno = EINVAL;
  if (getpid() != 1) return refuse("not PID 1");
  if (prctl(PR_SET_DUMPABLE, 0) < 0) return refuse("PR_SET_DUMPABLE");
  if (!is_listener(LISTEN_FD)) return refuse("fd 3 is not a listening socket");
  if (fcntl(LISTEN_FD, F_SETFD, FD_CLOEXEC) < 0 || fcntl(LISTEN_FD, F_SETFL, O_NONBLOCK) < 0) return refuse("fd 3");
  if (syscall(SYS_close_range, 4, ~0U, 0) < 0)
    for (int fd = 4; fd < 1024; fd++) close(fd);
  int signals = listen_to_signals();
  if (signals < 0) return refuse("signalfd");
  umask(022);
  if (!use_dev_null()) return refuse("/dev/null");
  agent.fd = -1;
  loop(signals);
  return 0;
}
