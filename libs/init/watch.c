/* watch.c: what happens in a directory, or in a tree, as records on stdout.
 *
 * A watch of inotify(7) belongs to one directory, so a tree has one for each of its directories, and a new one gets its
 * own when it is told of. What was made in it before that is found by reading it, after the watch is there: so nothing
 * is missed, and a `created` may be told twice. When the queue of the kernel ran over, everything is watched anew and
 * then `overflow` is told: what happens after it is told again.
 *
 * No directory stays open: the kernel tells that a directory is gone only when nobody holds it. Since others may hold
 * it, the directory above is watched too, where it may be read. */
#define _GNU_SOURCE
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

enum { MAX_DIRECTORIES = 16384, BUCKETS = 4096 };
enum { PAIR_MS = 20 };   /* the halves of a rename are queued together, but one read(2) may part them */
enum { NONE = -1, ROOT = 0 };

static const uint32_t EVENTS = IN_CREATE | IN_DELETE | IN_MODIFY | IN_ATTRIB | IN_MOVED_FROM | IN_MOVED_TO |
                               IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR | IN_EXCL_UNLINK | IN_MASK_ADD;

/* The watched directories; nodes[ROOT] is the one that was asked for. `next` chains a bucket, or the free ones. */
static struct node { int wd, parent, next; char *name; } nodes[MAX_DIRECTORIES];
static int buckets[BUCKETS], unused;
static bool recursive;
static int queue = -1, above_wd;
static char root[PATH_BYTES];
static struct stat root_is;

/* A rename whose other half has not come. */
static struct { bool waits, directory; uint32_t cookie; int node; char name[256]; } moved;

/* ---- records ---- */

static void tell(const char *type, bool directory, const char *path, const char *from) {
  put_text("%s %d %zu %zu\n", type, directory, strlen(path), strlen(from));
  put(path, strlen(path));
  put(from, strlen(from));
}

/* Path of `name` in a node, relative to the root; "" where no path can be so long. */
static const char *path_in(int node, const char *name, char into[PATH_BYTES]) {
  char *at = into + PATH_BYTES - 1;
  *at = 0;
  for (;; name = nodes[node].name, node = nodes[node].parent) {
    size_t n = strlen(name);
    if ((size_t)(at - into) < n + 1) return "";
    if (n > 0 && *at) *--at = '/';
    at -= n;
    memcpy(at, name, n);
    if (node == ROOT) return at;
  }
}

static void tell_in(const char *type, bool directory, int node, const char *name) {
  char path[PATH_BYTES];
  tell(type, directory, path_in(node, name, path), "");
}

static _Noreturn void gone(void) {
  tell("gone", true, "", "");
  flush();
  exit(0);
}

/* ---- nodes ---- */

static int *bucket(int wd) { return &buckets[(unsigned)wd % BUCKETS]; }

static int node_of(int wd) {
  int n = *bucket(wd);
  while (n != NONE && nodes[n].wd != wd) n = nodes[n].next;
  return n;
}

static int child_of(int parent, const char *name) {
  for (int n = 1; n < MAX_DIRECTORIES; n++)
    if (nodes[n].wd >= 0 && nodes[n].parent == parent && strcmp(nodes[n].name, name) == 0) return n;
  return NONE;
}

/* With all below it. */
static void drop(int n) {
  for (int below = 1; below < MAX_DIRECTORIES; below++)
    if (nodes[below].wd >= 0 && nodes[below].parent == n) drop(below);
  int *link = bucket(nodes[n].wd);
  while (*link != n) link = &nodes[*link].next;
  *link = nodes[n].next;
  inotify_rm_watch(queue, nodes[n].wd);
  free(nodes[n].name);
  nodes[n] = (struct node){NONE, NONE, unused, NULL};
  unused = n;
}

static void rename_node(int n, int parent, const char *name) {
  char *copy = strdup(name);
  if (!copy) fail("path", ENOMEM, root, "");
  free(nodes[n].name);
  nodes[n].name = copy;
  nodes[n].parent = parent;
}

/* The place of a directory for the kernel; too long ones it refuses. */
static void full_path(int parent, const char *name, char into[2 * PATH_BYTES]) {
  char path[PATH_BYTES];
  snprintf(into, 2 * PATH_BYTES, "%s/%s", root, path_in(parent, name, path));
}

static bool is_below(int n, int above) {
  while (n != above && n != ROOT) n = nodes[n].parent;
  return n == above;
}

/* NONE with errno where it cannot be watched, or is already: then it was moved here (or, a mount, is here twice). */
static int add(int parent, const char *name) {
  char path[2 * PATH_BYTES];
  full_path(parent, name, path);
  int wd = inotify_add_watch(queue, path, EVENTS | IN_DONT_FOLLOW);
  if (wd < 0) return NONE;
  int known = node_of(wd), n = unused;
  if (known != NONE) {
    if (!is_below(parent, known)) rename_node(known, parent, name);
    errno = EEXIST;
    return NONE;
  }
  if (n == NONE) {
    inotify_rm_watch(queue, wd);
    errno = ENOSPC;
    return NONE;
  }
  unused = nodes[n].next;
  nodes[n] = (struct node){wd, parent, *bucket(wd), NULL};
  *bucket(wd) = n;
  rename_node(n, parent, name);
  return n;
}

/* ---- trees ---- */

/* When a directory is found: FIRST nobody was promised anything yet, AGAIN after an overflow, LATE after it was made,
 * so that what is in it has to be told as well. */
enum found { FIRST, AGAIN, LATE };

static int waiting[MAX_DIRECTORIES], nwaiting;

static void find(int parent, const char *name, enum found how) {
  char path[PATH_BYTES];
  int n = add(parent, name);
  if (n != NONE) waiting[nwaiting++] = n;
  /* Gone again, not a directory any more, or not for this user to read: nothing to be told of it. */
  else if (errno != ENOSPC && errno != ENOMEM && errno != ENAMETOOLONG) return;
  else if (how == FIRST) fail("watches", MAX_DIRECTORIES, path_in(parent, name, path), "");
  else tell_in("overflow", true, parent, name);
}

static bool is_directory(DIR *d, const struct dirent *e) {
  struct stat st;
  if (e->d_type != DT_UNKNOWN) return e->d_type == DT_DIR;
  return fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode);
}

static void read_directory(int n, enum found how) {
  char path[2 * PATH_BYTES];
  full_path(n, "", path);
  DIR *d = opendir(path);
  if (!d) return;
  for (struct dirent *e; (e = readdir(d)); ) {
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
    bool directory = is_directory(d, e);
    if (how == LATE) tell_in("created", directory, n, e->d_name);
    if (directory) find(n, e->d_name, how);
  }
  closedir(d);
}

static void read_waiting(enum found how) {
  while (nwaiting > 0) read_directory(waiting[--nwaiting], how);
}

static void find_tree(int parent, const char *name, enum found how) {
  if (!recursive) return;
  find(parent, name, how);
  read_waiting(how);
}

static void check_gone(void) {
  struct stat st;
  if (lstat(root, &st) < 0 || st.st_dev != root_is.st_dev || st.st_ino != root_is.st_ino) gone();
}

static void watch_above(void) {
  char above[PATH_BYTES];
  char *end = strrchr(strcpy(above, root), '/');
  above_wd = NONE;
  if (strcmp(root, "/") == 0) return;
  end[end == above] = 0;
  above_wd = inotify_add_watch(queue, above, IN_DELETE | IN_MOVED_FROM | IN_ONLYDIR | IN_MASK_ADD);
}

static void start(enum found how) {
  if (queue >= 0) close(queue);
  for (int n = 0; n < BUCKETS; n++) buckets[n] = NONE;
  for (int n = 0; n < MAX_DIRECTORIES; n++) {
    free(nodes[n].name);
    nodes[n] = (struct node){NONE, NONE, n + 1 < MAX_DIRECTORIES ? n + 1 : NONE, NULL};
  }
  unused = ROOT;
  moved.waits = false;
  queue = inotify_init1(IN_CLOEXEC);
  if (queue < 0) fail(errno == EMFILE ? "watches" : "path", errno == EMFILE ? 0 : errno, root, "");
  if (add(ROOT, "") == NONE) {
    if (errno == ENOSPC) fail("watches", 0, root, "");
    if (how == FIRST) fail_errno(root);
    gone();
  }
  watch_above();
  check_gone();
  if (recursive) read_directory(ROOT, how);
  read_waiting(how);
}

/* ---- events ---- */

/* The other half did not come: it was moved out of what is watched. */
static void settle_move(void) {
  if (!moved.waits) return;
  moved.waits = false;
  tell_in("removed", moved.directory, moved.node, moved.name);
  int child = moved.directory ? child_of(moved.node, moved.name) : NONE;
  if (child != NONE) drop(child);
}

static void complete_move(int node, const char *name) {
  char from[PATH_BYTES], path[PATH_BYTES];
  moved.waits = false;
  tell("renamed", moved.directory, path_in(node, name, path), path_in(moved.node, moved.name, from));
  if (!moved.directory || !recursive) return;
  int replaced = child_of(node, name), child = child_of(moved.node, moved.name);
  if (replaced != NONE && replaced != child) drop(replaced);
  if (child == NONE) find_tree(node, name, LATE);
  else rename_node(child, node, name);
}

static void on_root_event(const struct inotify_event *e) {
  if (e->mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT | IN_IGNORED)) gone();
  if (e->mask & IN_ATTRIB) tell("attributes", true, "", "");
}

static void on_event(const struct inotify_event *e) {
  int n = node_of(e->wd);
  bool directory = e->mask & IN_ISDIR;
  if (e->wd == above_wd && e->len && strcmp(e->name, strrchr(root, '/') + 1) == 0) check_gone();
  if (n == NONE) return;
  bool second = moved.waits && (e->mask & IN_MOVED_TO) && e->cookie == moved.cookie;
  if (!second) settle_move();
  if (nodes[n].wd != e->wd) return;   /* it went with that move */
  if (!e->len) {
    if (n == ROOT) on_root_event(e);
    else if (e->mask & IN_IGNORED) drop(n);
  } else if (second) {
    complete_move(n, e->name);
  } else if (e->mask & IN_MOVED_FROM) {
    moved.waits = true;
    moved.directory = directory;
    moved.cookie = e->cookie;
    moved.node = n;
    snprintf(moved.name, sizeof moved.name, "%s", e->name);
  } else if (e->mask & (IN_CREATE | IN_MOVED_TO)) {
    tell_in("created", directory, n, e->name);
    if (directory) find_tree(n, e->name, LATE);
  } else {
    tell_in(e->mask & IN_DELETE ? "removed" : e->mask & IN_MODIFY ? "modified" : "attributes", directory, n, e->name);
  }
}

void watch(const char *path, bool all) {
  static _Alignas(struct inotify_event) char events[64 << 10];
  char link[32];
  int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0 || fstat(fd, &root_is) < 0) fail_errno(path);
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  if (readlink(link, root, sizeof root - 1) < 0) fail_errno(path);
  close(fd);
  recursive = all;
  start(FIRST);
  tell("ready", true, "", "");
  for (;;) {
    flush();
    struct pollfd more = {.fd = queue, .events = POLLIN};
    if (moved.waits && poll(&more, 1, PAIR_MS) == 0) {
      settle_move();
      continue;
    }
    ssize_t n = read(queue, events, sizeof events);
    if (n < 0 && errno != EINTR) fail_errno(path);
    const struct inotify_event *e;
    for (char *at = events; n > 0; at += sizeof *e + e->len, n -= (ssize_t)(sizeof *e + e->len)) {
      e = (const struct inotify_event *)(const void *)at;
      if (e->mask & IN_Q_OVERFLOW) {
        start(AGAIN);
        tell("overflow", true, "", "");
        break;
      }
      on_event(e);
    }
  }
}
