/* spawn.c: from a request to a running program, and the only place that touches other processes.
 *
 * The child's order matters: stdio and terminal while still root; oom_score_adj and rlimits before credentials
 * (both may need them); the bounding set before capset (needs SETPCAP); ids with KEEPCAPS, then capabilities;
 * the cwd with the process' own rights; no_new_privs and signals last. Until exec the child is undumpable, as
 * init is, so no process of the sandbox can attach to it while it still holds init's memory. */
#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* capset(2) without libcap: version 3, two words per set (linux/capability.h is not in musl). */
struct cap_header { uint32_t version; int pid; };
struct cap_words { uint32_t effective, permitted, inheritable; };
enum { CAP_VERSION_3 = 0x20080522 };

enum { IN, OUT, ERR, FAILURE, PIPES };
struct pipes { int mine[PIPES], theirs[PIPES]; };

/* Owned by the process, or it could not open its own /dev/stdout. */
static bool make_pipe(const struct spawn_request *r, struct pipes *p, int which) {
  int fd[2];
  if (pipe2(fd, O_CLOEXEC) < 0) return false;
  p->mine[which] = which == IN ? fd[1] : fd[0];
  p->theirs[which] = which == IN ? fd[0] : fd[1];
  return fcntl(p->mine[which], F_SETFL, O_NONBLOCK) == 0 && fchown(fd[0], r->uid, r->gid) == 0;
}

static void close_all(const int fds[PIPES]) {
  for (int i = 0; i < PIPES; i++)
    if (fds[i] >= 0) close(fds[i]);
}

/* O_NONBLOCK on open, since the sandbox's root may have put anything at /dev/ptmx. The other side is taken
 * from the kernel (TIOCGPTPEER), not from a path the sandbox could have changed. */
static bool make_terminal(const struct spawn_request *r, struct pipes *p) {
  int unlocked = 0, master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
  if (master < 0) return false;
  p->mine[OUT] = master;
  if (ioctl(master, TIOCSPTLCK, &unlocked) < 0) return false;
  p->theirs[OUT] = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (p->theirs[OUT] < 0 || fchown(p->theirs[OUT], r->uid, (gid_t)-1) < 0) return false;
  p->mine[IN] = fcntl(master, F_DUPFD_CLOEXEC, 3);
  return p->mine[IN] >= 0 && spawn_resize(master, r->rows, r->cols) == 0;
}

static bool make_stdio(const struct spawn_request *r, struct pipes *p) {
  if (!make_pipe(r, p, FAILURE)) return false;
  if (r->flags & SPAWN_TTY) return make_terminal(r, p);
  if ((r->flags & SPAWN_STDIN) && !make_pipe(r, p, IN)) return false;
  return make_pipe(r, p, OUT) && ((r->flags & SPAWN_STDERR_TO_STDOUT) || make_pipe(r, p, ERR));
}

/* ---- in the child ---- */

static bool child_stdio(const struct spawn_request *r, const struct pipes *p) {
  int out = p->theirs[OUT], err = p->theirs[ERR] >= 0 ? p->theirs[ERR] : out;
  int in = r->flags & SPAWN_TTY ? out : p->theirs[IN];
  /* Without one, fd 0 stays what init's is: /dev/null, opened before anything of the tenant ran. */
  if (in >= 0 && dup2(in, 0) < 0) return false;
  if (dup2(out, 1) < 0 || dup2(err, 2) < 0) return false;
  return !(r->flags & SPAWN_TTY) || ioctl(0, TIOCSCTTY, 0) == 0;
}

/* /proc/self belongs to the global root while undumpable, which a user namespace cannot write; all of the
 * child's capabilities are still on, so nothing in the sandbox could attach in between. Lowering is refused
 * by the kernel (EACCES): then init's own value stays, which is the safe side. */
static void child_oom_score(int32_t adj) {
  char text[16];
  int n = snprintf(text, sizeof text, "%d", adj);
  prctl(PR_SET_DUMPABLE, 1);
  int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd >= 0) {
    ssize_t written = write(fd, text, (size_t)n);
    (void)written;
    close(fd);
  }
  prctl(PR_SET_DUMPABLE, 0);
}

static bool child_rlimits(const struct spawn_request *r) {
  for (uint32_t i = 0; i < r->nrlimits; i++) {
    uint64_t limit[2] = {r->rlimits[i].soft, r->rlimits[i].hard};
    if (syscall(SYS_prlimit64, 0, r->rlimits[i].resource, limit, NULL) < 0) return false;
  }
  return true;
}

static bool child_bounding(uint64_t keep) {
  for (unsigned cap = 0; cap < 64; cap++) {
    int held = prctl(PR_CAPBSET_READ, cap, 0, 0, 0);
    if (held < 0) break;   /* beyond the kernel's last capability */
    if (held && !(keep >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) return false;
  }
  return true;
}

static bool child_ids(const struct spawn_request *r) {
  /* A single-id mapping denies setgroups; init's own list is empty there. */
  if (setgroups(r->ngroups, r->groups) < 0 && !(errno == EPERM && r->ngroups == 0)) return false;
  return prctl(PR_SET_KEEPCAPS, 1) == 0 && setresgid(r->gid, r->gid, r->gid) == 0 &&
         setresuid(r->uid, r->uid, r->uid) == 0;
}

static bool child_capabilities(const struct spawn_request *r) {
  struct cap_header header = {.version = CAP_VERSION_3};
  struct cap_words words[2];
  for (int i = 0; i < 2; i++) {
    words[i].effective = words[i].permitted = (uint32_t)(r->cap_effective >> (32 * i));
    words[i].inheritable = (uint32_t)(r->cap_inheritable >> (32 * i));
  }
  if (syscall(SYS_capset, &header, words) < 0) return false;
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0) return false;
  for (unsigned cap = 0; cap < 64; cap++)
    if ((r->cap_ambient >> cap & 1) && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0) return false;
  return true;
}

static void child_signals(void) {
  sigset_t none;
  sigemptyset(&none);
  for (int s = 1; s <= 64; s++) signal(s, SIG_DFL);   /* KILL, STOP and libc's own refuse: as they should */
  sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Strings are moved over their own length prefix, which makes room for the NUL. The payload is the child's
 * private copy. Returns the place after the last one. */
static uint8_t *terminate(struct strings s, char **into) {
  uint8_t *p = (uint8_t *)(uintptr_t)s.first;
  for (uint32_t i = 0; i < s.n; i++) {
    uint32_t len = get_u32(p);
    memmove(p, p + 4, len);
    p[len] = 0;
    into[i] = (char *)p;
    p += 4 + len;
  }
  into[s.n] = NULL;
  return p;
}

/* As execvp(3) with the PATH of the new environment, without its shell for files of unknown format. */
static int exec_search(char **argv, char **env) {
  const char *path = DEFAULT_PATH, *name = argv[0];
  char file[4096];
  int denied = 0;
  if (strchr(name, '/') || !*name) {
    execve(name, argv, env);
    return errno;
  }
  for (char **e = env; *e; e++)
    if (strncmp(*e, "PATH=", 5) == 0) {
      path = *e + 5;
      break;
    }
  for (const char *end; ; path = end + 1) {
    end = strchrnul(path, ':');
    const char *slash = end > path ? "/" : "";   /* an empty element is the cwd */
    if (snprintf(file, sizeof file, "%.*s%s%s", (int)(end - path), path, slash, name) < (int)sizeof file) {
      execve(file, argv, env);
      if (errno == EACCES) denied = EACCES;
      else if (errno != ENOENT && errno != ENOTDIR && errno != ENAMETOOLONG && errno != ELOOP) return errno;
    }
    if (!*end) return denied ? denied : ENOENT;
  }
}

/* Returns what went wrong, or does not return. */
static struct failure child(const struct spawn_request *r, const struct pipes *p) {
#define FAIL(stage_) return (struct failure){stage_, errno}
  size_t pointers = ((size_t)r->argv.n + r->env.n + 2) * sizeof(char *);
  char *cwd[2], **argv = mmap(NULL, pointers, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (argv == MAP_FAILED) FAIL(STAGE_SETUP);
  char **env = argv + r->argv.n + 1;
  if (setsid() < 0 || !child_stdio(r, p)) FAIL(STAGE_SETUP);
  child_oom_score(r->oom_score_adj);
  terminate(r->cwd, cwd);
  terminate(r->argv, argv);
  terminate(r->env, env);
  if (!child_rlimits(r)) FAIL(STAGE_RLIMIT);
  if (!child_bounding(r->cap_bounding) || !child_ids(r) || !child_capabilities(r)) FAIL(STAGE_SETUP);
  if (chdir(cwd[0]) < 0) FAIL(STAGE_CWD);
  if ((r->flags & SPAWN_NO_NEW_PRIVS) && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) FAIL(STAGE_SETUP);
  child_signals();
  return (struct failure){STAGE_EXEC, exec_search(argv, env)};
#undef FAIL
}

struct failure spawn_start(const struct spawn_request *r, struct spawned *s) {
  struct pipes p = {{-1, -1, -1, -1}, {-1, -1, -1, -1}};
  struct failure f = {0, 0};
  if (!make_stdio(r, &p)) f = (struct failure){STAGE_SETUP, errno};
  else if ((s->pid = fork()) < 0) f = (struct failure){STAGE_FORK, errno};
  else if (s->pid == 0) {
    struct failure why = child(r, &p);
    ssize_t told = write(p.theirs[FAILURE], &why, sizeof why);
    _exit(told == sizeof why ? 127 : 126);
  }
  close_all(p.theirs);
  if (f.stage) close_all(p.mine);
  s->in_fd = p.mine[IN];
  s->out_fd = p.mine[OUT];
  s->err_fd = p.mine[ERR];
  s->failure_fd = p.mine[FAILURE];
  return f;
}

/* -1 reaches everything in the pid namespace but init itself (kill(2)); init refuses to run as another pid. */
int spawn_signal(pid_t pid, enum signal_scope scope, int signo) {
  pid_t whom = scope == SCOPE_SANDBOX ? -1 : scope == SCOPE_GROUP ? -pid : pid;
  if (kill(whom, signo) == 0) return 0;
  /* A child that has not reached setsid(2) has no group of its own yet. */
  return scope == SCOPE_GROUP && errno == ESRCH && kill(pid, signo) == 0 ? 0 : errno;
}

int spawn_resize(int terminal_fd, uint16_t rows, uint16_t cols) {
  struct winsize size = {.ws_row = rows, .ws_col = cols};
  return ioctl(terminal_fd, TIOCSWINSZ, &size) < 0 ? errno : 0;
}

int spawn_type_eof(int terminal_fd) {
  struct termios t;
  if (tcgetattr(terminal_fd, &t) < 0) return errno;
  if (!(t.c_lflag & ICANON)) return 0;
  return write(terminal_fd, &t.c_cc[VEOF], 1) == 1 ? 0 : errno;
}
