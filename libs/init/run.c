/* run.c: berth-run starts programs on behalf of the agent. A fork of the agent itself copies the page tables of a large
 * process, which takes ten milliseconds in which nothing else of it runs; this one is small, and does not even fork
 * (vfork(2)). It lives as long as the agent: when the socket ends, it kills what it started and ends too.
 *
 * fd 3 is a unix stream socket; README.md has the frames. One loop: requests in, output and ends out. Output waits in a
 * buffer of fixed size, and where that is full nothing is read, so a program that floods is held up, not this one. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { AGENT = 3, HEADER = 12, MAX_RUNS = 256, MAX_PAYLOAD = 256 << 10, MAX_WORDS = 4096 };
enum { CHUNK = 16 << 10, OUT_BYTES = 256 << 10 };
/* What every run may yet have to be told must fit at any time, whatever output waits: an end of each. */
enum { END_BYTES = HEADER + 5, OUT_RESERVE = MAX_RUNS * END_BYTES + END_BYTES };
enum { START = 1, KILL = 2, OUTPUT = 65, ENDED = 66 };
enum { EXITED = 0, SIGNALED = 1, NOT_STARTED = 2 };
/* A descendant may hold the pipes open; after the program itself ended they are given this long. */
enum { HELD_OPEN_MS = 250 };

struct run {
  uint32_t id;               /* 0: free */
  pid_t pid;                 /* 0: reaped */
  int out[2];                /* our ends of stdout and stderr; -1: ended */
  int status;
  int64_t give_up_ms;        /* 0: it runs */
};

static struct run runs[MAX_RUNS];
static uint8_t in[HEADER + MAX_PAYLOAD];
static size_t in_len;
static uint8_t out[OUT_BYTES];
static size_t out_start, out_end;

static int64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static uint32_t get_u32(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put_u32(uint8_t *p, uint32_t v) {
  for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (8 * i));
}

/* ---- to the agent ---- */

static size_t out_room(void) {
  if (out_start > 0) {
    memmove(out, out + out_start, out_end - out_start);
    out_end -= out_start;
    out_start = 0;
  }
  return OUT_BYTES - out_end;
}

static uint8_t *frame(uint8_t type, uint8_t stream, uint32_t id, uint32_t len) {
  uint8_t *p = out + out_end;
  put_u32(p, len);
  p[4] = type;
  p[5] = stream;
  p[6] = p[7] = 0;
  put_u32(p + 8, id);
  out_end += HEADER + len;
  return p + HEADER;
}

static void tell_end(uint32_t id, uint8_t kind, int value) {
  uint8_t *p = frame(ENDED, 0, id, 5);
  p[0] = kind;
  put_u32(p + 1, (uint32_t)value);
}

/* ---- one run ---- */

static struct run *find(uint32_t id) {
  for (struct run *r = runs; r < runs + MAX_RUNS; r++)
    if (r->id == id) return r;
  return NULL;
}

static void close_fd(int *fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

static void kill_run(const struct run *r) {
  if (r->id && r->pid) kill(-r->pid, SIGKILL);
}

/* Tells the end once the program is reaped and its pipes have ended, or were given long enough to. */
static void settle(struct run *r, int64_t now) {
  if (!r->id || r->pid) return;
  bool open = r->out[0] >= 0 || r->out[1] >= 0;
  if (open && now < r->give_up_ms) return;
  for (int i = 0; i < 2; i++) close_fd(&r->out[i]);
  if (WIFSIGNALED(r->status)) tell_end(r->id, SIGNALED, WTERMSIG(r->status));
  else tell_end(r->id, EXITED, WEXITSTATUS(r->status));
  r->id = 0;
}

static void read_output(struct run *r, int i) {
  out_room();   /* the caller has seen that a chunk fits */
  ssize_t n = read(r->out[i], out + out_end + HEADER, CHUNK);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) {
    close_fd(&r->out[i]);
    return;
  }
  frame(OUTPUT, (uint8_t)(i + 1), r->id, (uint32_t)n);
}

static void reap(void) {
  int status;
  for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
    for (struct run *r = runs; r < runs + MAX_RUNS; r++)
      if (r->id && r->pid == pid) {
        r->pid = 0;
        r->status = status;
        r->give_up_ms = now_ms() + HELD_OPEN_MS;
      }
}

/* ---- start ---- */

/* Strings of a START in place: each is u32 length + bytes, and the length of the next one makes room for the NUL. */
struct start { char *cwd, *argv[MAX_WORDS + 1], *env[MAX_WORDS + 1]; };

static bool take_u32(uint8_t **at, const uint8_t *end, uint32_t *v) {
  if ((size_t)(end - *at) < 4) return false;
  *v = get_u32(*at);
  *at += 4;
  return true;
}

/* A string is moved one byte down over its own length, so that there is room for its NUL before what follows. */
static bool take_string(uint8_t **at, const uint8_t *end, char **s) {
  uint32_t len;
  if (!take_u32(at, end, &len) || (size_t)(end - *at) < len || memchr(*at, 0, len)) return false;
  *s = (char *)memmove(*at - 1, *at, len);
  (*s)[len] = '\0';
  *at += len;
  return true;
}

static bool take_strings(uint8_t **at, const uint8_t *end, char **list) {
  uint32_t n;
  if (!take_u32(at, end, &n) || n > MAX_WORDS) return false;
  for (uint32_t i = 0; i < n; i++)
    if (!take_string(at, end, &list[i])) return false;
  list[n] = NULL;
  return true;
}

static bool decode(uint8_t *payload, uint32_t len, struct start *s) {
  uint8_t *at = payload, *end = payload + len;
  return take_string(&at, end, &s->cwd) && take_strings(&at, end, s->argv) && take_strings(&at, end, s->env) &&
         at == end && s->argv[0] != NULL;
}

/* In the child: it shares our memory until exec, and may change nothing of it but `path` on its own stack. */
static int child_exec(const struct start *s) {
  const char *program = s->argv[0], *dirs = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  char path[4096];
  int error = ENOENT;
  if (strchr(program, '/')) {
    execve(program, s->argv, s->env);
    return errno;
  }
  for (char *const *e = s->env; *e; e++)
    if (strncmp(*e, "PATH=", 5) == 0) dirs = *e + 5;
  while (*dirs) {
    size_t n = strcspn(dirs, ":"), len = strlen(program);
    if (n > 0 && n + len + 2 <= sizeof path) {
      memcpy(path, dirs, n);
      path[n] = '/';
      memcpy(path + n + 1, program, len + 1);
      execve(path, s->argv, s->env);
      if (errno == EACCES) error = EACCES;   /* as execvp(3): go on, but tell */
      else if (errno != ENOENT && errno != ENOTDIR) return errno;
    }
    dirs += n + (dirs[n] == ':');
  }
  return error;
}

static void child(const struct start *s, const int theirs[2], pid_t parent, volatile int *error) {
  sigset_t none;
  sigemptyset(&none);
  setpgid(0, 0);   /* what KILL kills; not a session, for each of which the kernel makes a scheduling group */
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  signal(SIGPIPE, SIG_DFL);
  sigprocmask(SIG_SETMASK, &none, NULL);
  if (getppid() == parent && dup2(theirs[0], 1) == 1 && dup2(theirs[1], 2) == 2 && chdir(s->cwd) == 0)
    *error = child_exec(s);
  else *error = errno ? errno : ESRCH;
  _exit(127);
}

static int start(struct run *r, const struct start *s) {
  int pipes[2][2] = {{-1, -1}, {-1, -1}};
  volatile int error = 0;
  pid_t self = getpid(), pid = -1;
  if (pipe2(pipes[0], O_CLOEXEC) < 0 || pipe2(pipes[1], O_CLOEXEC) < 0) error = errno;
  else {
    const int theirs[2] = {pipes[0][1], pipes[1][1]};
    pid = vfork();
    if (pid == 0) child(s, theirs, self, &error);
    if (pid < 0) error = errno;
  }
  for (int i = 0; i < 2; i++) {
    close_fd(&pipes[i][1]);
    if (error) close_fd(&pipes[i][0]);
    else fcntl(pipes[i][0], F_SETFL, O_NONBLOCK);
    r->out[i] = pipes[i][0];
  }
  if (error && pid > 0) waitpid(pid, NULL, 0);
  r->pid = pid;
  return error;
}

/* ---- from the agent ---- */

static void on_start(uint32_t id, uint8_t *payload, uint32_t len) {
  static struct start s;
  struct run *r = find(0);
  if (!r || find(id)) return tell_end(id, NOT_STARTED, r ? EEXIST : EAGAIN);
  if (!decode(payload, len, &s)) return tell_end(id, NOT_STARTED, EINVAL);
  *r = (struct run){.id = id, .out = {-1, -1}};
  int error = start(r, &s);
  if (!error) return;
  r->id = 0;
  tell_end(id, NOT_STARTED, error);
}

/* @returns false when the agent does not keep to the protocol. */
static bool dispatch(void) {
  size_t at = 0;
  while (in_len - at >= HEADER) {
    uint8_t *p = in + at;
    uint32_t len = get_u32(p), id = get_u32(p + 8);
    if (len > MAX_PAYLOAD || id == 0) return false;
    if (in_len - at < HEADER + len) break;
    if (out_room() < OUT_RESERVE) break;   /* an answer must fit: the rest waits until the agent has read */
    if (p[4] == START) on_start(id, p + HEADER, len);
    else if (p[4] == KILL) {
      struct run *r = find(id);
      if (r) kill_run(r);
    } else return false;
    at += HEADER + len;
  }
  memmove(in, in + at, in_len - at);
  in_len -= at;
  return true;
}

/* @returns false at the end of the agent. */
static bool receive(void) {
  ssize_t n = read(AGENT, in + in_len, sizeof in - in_len);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (n <= 0) return false;
  in_len += (size_t)n;
  return dispatch();
}

static bool send_out(void) {
  while (out_start < out_end) {
    ssize_t n = send(AGENT, out + out_start, out_end - out_start, MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (n < 0) return false;
    out_start += (size_t)n;
  }
  out_start = out_end = 0;
  return true;
}

/* ---- the loop ---- */

static int next_timeout(int64_t now) {
  int64_t next = -1;
  for (struct run *r = runs; r < runs + MAX_RUNS; r++)
    if (r->id && !r->pid && (next < 0 || r->give_up_ms < next)) next = r->give_up_ms;
  return next < 0 ? -1 : next <= now ? 0 : (int)(next - now);
}

static bool turn(int child_fd) {
  static struct pollfd polled[2 + 2 * MAX_RUNS];
  static struct { struct run *run; int stream; } whose[2 + 2 * MAX_RUNS];
  bool room = out_room() >= OUT_RESERVE + HEADER + CHUNK;
  nfds_t n = 2;
  polled[0] = (struct pollfd){.fd = AGENT, .events = (short)((room && in_len < sizeof in ? POLLIN : 0) | (out_end > out_start ? POLLOUT : 0))};
  polled[1] = (struct pollfd){.fd = child_fd, .events = POLLIN};
  for (struct run *r = runs; room && r < runs + MAX_RUNS; r++)
    for (int i = 0; r->id && i < 2; i++)
      if (r->out[i] >= 0) {
        whose[n].run = r;
        whose[n].stream = i;
        polled[n++] = (struct pollfd){.fd = r->out[i], .events = POLLIN};
      }
  if (poll(polled, n, next_timeout(now_ms())) < 0 && errno != EINTR) return false;
  if (polled[1].revents) {
    struct signalfd_siginfo told[8];
    while (read(child_fd, told, sizeof told) > 0) continue;
    reap();
  }
  for (nfds_t i = 2; i < n; i++)
    if (polled[i].revents && out_room() >= OUT_RESERVE + HEADER + CHUNK) read_output(whose[i].run, whose[i].stream);
  int64_t now = now_ms();
  for (struct run *r = runs; r < runs + MAX_RUNS; r++) settle(r, now);
  if ((polled[0].revents & (POLLIN | POLLHUP | POLLERR)) && !receive()) return false;
  return send_out() && (in_len < HEADER || dispatch());
}

int main(void) {
  sigset_t chld;
  sigemptyset(&chld);
  sigaddset(&chld, SIGCHLD);
  sigprocmask(SIG_BLOCK, &chld, NULL);
  signal(SIGPIPE, SIG_IGN);
  int null = open("/dev/null", O_RDWR | O_CLOEXEC), child_fd;
  if (null < 0 || dup2(null, 0) < 0 || fcntl(AGENT, F_SETFD, FD_CLOEXEC) < 0 || fcntl(AGENT, F_SETFL, O_NONBLOCK) < 0)
    return 1;
  syscall(SYS_close_range, AGENT + 1, ~0u, 0);   /* whatever else was inherited; `null` too */
  child_fd = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
  if (child_fd < 0 || chdir("/") < 0) return 1;
  while (turn(child_fd)) continue;
  for (struct run *r = runs; r < runs + MAX_RUNS; r++) kill_run(r);
  return 0;
}
