/* names.c: names of a directory, sorted; those of directories that are one in an overlay, each once. */
#define _GNU_SOURCE
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void add_name(struct names *names, const char *name, const char *shown) {
  names->list = grown(names->list, &names->room, names->count + 1, sizeof *names->list);
  if (!(names->list[names->count++] = strdup(name))) fail("path", ENOMEM, shown, "");
}

void read_names(int dir, struct names *names, const char *shown) {
  int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0 && errno == ENOENT) return;   /* removed since it was opened */
  DIR *d = fd < 0 ? NULL : fdopendir(fd);
  if (!d) fail_errno(shown);
  struct dirent *e;
  while (errno = 0, (e = readdir(d)))
    if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) add_name(names, e->d_name, shown);
  if (errno && errno != ENOENT) fail_errno(shown);
  closedir(d);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

void settle_names(struct names *names) {
  size_t kept = 0;
  if (names->count > 1) qsort(names->list, names->count, sizeof *names->list, by_name);
  for (size_t i = 0; i < names->count; i++)
    if (kept > 0 && strcmp(names->list[kept - 1], names->list[i]) == 0) free(names->list[i]);
    else names->list[kept++] = names->list[i];
  names->count = kept;
}

void free_names(struct names *names) {
  for (size_t i = 0; i < names->count; i++) free(names->list[i]);
  free(names->list);
}
