/* files.h: the parts of berth-files, berth-layer and berth-diff, and what they ask of each other.
 *
 *   files.c   arguments, output, failures; stat, list, read, write, mkdir, rename
 *   io.c      reading and writing all of it
 *   place.c   new files made beside their target and moved over it whole; where a path leads
 *   tree.c    remove: trees of any depth without recursion
 *   watch.c   inotify as a stream of events
 *   pack.c    a tree as a tar
 *   tar.c     entries as a tar
 *   untar.c   a tar as entries; no file is touched here, so fuzz/tar.c can link it alone
 *   unpack.c  entries as files
 *   layer.c   berth-layer: entries as a lower directory of overlayfs; it has untar.c, tree.c, tar.c and io.c besides
 *   upper.c   the other way: directories of overlayfs as a tar
 *   names.c   names of a directory, sorted; berth-diff (diff.c) has them, and io.c, besides */
#ifndef BERTH_FILES_H
#define BERTH_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>

enum {
  CHUNK = 256 << 10,         /* bytes that are moved at a time */
  PATH_BYTES = 4096,         /* PATH_MAX: longer paths are refused by the kernel */
  TEMPORARY_BYTES = 24,      /* ".berth-", 16 hex digits, NUL */
};

/* ---- files.c ---- */

/* Ends the process: one line `WORD NUMBER PATH TEXT` on stderr (README.md lists the words), nothing half-made left. */
_Noreturn void fail(const char *word, long long number, const char *path, const char *text);
_Noreturn void fail_errno(const char *path);     /* `path` with errno */

void put_text(const char *format, ...) __attribute__((format(printf, 1, 2)));
void put_stat(const struct stat *st, const char *name, const char *target);
bool of_kernel(int fd);      /* a file system whose files are made up by the kernel as they are read */

/* ---- io.c ---- */
size_t take(int fd, void *bytes, size_t n, const char *path);   /* as read(2), but all of it unless the file ends */
bool give(int fd, const void *bytes, size_t n);  /* all of it; false: errno is set */
bool leave_hole(int fd, uint64_t n);             /* at the end of a file; false: errno is set, EFBIG for more than it may be */
void put(const void *bytes, size_t n);           /* to stdout, buffered */
void flush(void);
void *grown(void *array, size_t *room, size_t need, size_t size);   /* realloc to hold `need` elements; never NULL */

/* ---- place.c ---- */

/* What a path names: `name` in the directory `dir` (O_PATH). `name` points into a buffer of its own. */
struct place { int dir; char *name; };

/* The last part is not looked up; "/", "." and ".." as the last part come out as ".". `parents` makes what is missing
 * above it (paths are absolute). */
struct place place_of(const char *path, bool parents);

/* Links are followed as open(2) does, also where they lead to nothing. `missing` is what of the directories does not
 * exist, relative to `dir` ("" when all is there); with !parents that is a failure. */
struct target { struct place at; char *missing; bool exists; struct stat st; };
struct target follow(const char *path, bool parents);

struct owner { uid_t uid; gid_t gid; };   /* (uid_t)-1: as it is */

/* Makes the directories of `path` below `dir` that are missing and returns the last. Closes `dir`. */
int make_directories(int dir, char *path, struct owner owner, const char *shown);

/* A file that nobody sees until it is whole. One at a time; fail() and signals leave nothing of it. */
int fresh_begin(int dir, const char *shown);
void fresh_abandon(void);   /* async-signal-safe */
void fresh_commit(int dir, const char *name, bool replace, const char *shown);

/* Makes something that is no regular file, over whatever is there but a directory. `make` gets a name; its errno counts. */
void place_over(int dir, const char *name, int (*make)(int dir, const char *name, const void *what), const void *what,
                const char *shown);
int rename_exclusive(int from_dir, const char *from, int to_dir, const char *to);   /* EEXIST, or as renameat(2) */

/* ---- names.c ---- */
struct names { char **list; size_t count, room; };   /* begins as zeros */
void read_names(int dir, struct names *names, const char *shown);   /* adds those of an open directory */
void settle_names(struct names *names);          /* sorts, and drops what is there twice */
void free_names(struct names *names);

/* ---- tree.c, watch.c, pack.c, unpack.c ---- */
void remove_tree(int dir, const char *name, const char *shown);
void watch(const char *path, bool recursive);
void pack(const char *path);
struct unpacked { unsigned long long entries, bytes; };
struct unpacked unpack(const char *path, bool as_archived, struct owner owner);

/* ---- tar.c ---- */

/* Each is followed by its content, filled up with put_padding. */
struct header_of {
  char type;                 /* as ustar calls it: '0' file, '1' hard link, '2' symbolic link, '5' directory, '6' FIFO */
  const char *path, *link;   /* relative, without a slash at the end; "" is the directory itself, or no link */
  mode_t mode;
  uid_t uid, gid;
  long long size, mtime;
  const struct attribute *attributes;
  size_t nattributes;
};
void put_header(const struct header_of *of);
void put_padding(long long written);
void put_end(void);          /* and what is buffered */
/* The path under which a file was stored before; NULL the first time, under which it then is known as `path`. */
const char *stored_as(const struct stat *st, const char *path);

/* ---- untar.c ---- */
enum {
  MAX_ENTRIES = 1000000,
  MAX_PARTS = 512,           /* directories above each other */
  MAX_NAME = 16 << 10,
  MAX_EXTENDED = 1 << 20,    /* bytes of a pax header */
  MAX_ATTRIBUTES = 256,      /* of one entry */
  MAX_ABOUT_NEXT = 8,        /* headers about one entry */
  MAX_FRAGMENTS = 1 << 16,   /* of a sparse file */
  MAX_TRAILING = 1 << 20,    /* bytes after the end marker */
};
enum entry_type { ENTRY_FILE, ENTRY_HARD_LINK, ENTRY_SYMLINK, ENTRY_DIRECTORY, ENTRY_FIFO, ENTRY_DEVICE };

/* How archives are read; all false: what a user sends. */
struct untar_rules {
  bool as_layer;             /* names from the root, device nodes, no end marker, anything after it */
  unsigned long max_entries; /* 0: MAX_ENTRIES */
};
extern struct untar_rules untar_rules;

/* An extended attribute, of a pax header `SCHILY.xattr.NAME`. */
struct attribute { char *name, *value; size_t bytes; };

struct entry {
  enum entry_type type;
  char *path;                /* relative, no "." or "..", one slash between parts; "" is the directory itself */
  char *link;                /* hard link: as path; symbolic link: any text */
  mode_t mode;               /* 07777 */
  uint64_t uid, gid;
  uint64_t size;             /* of a file, its holes too */
  uint64_t occupied;         /* what that takes on a disk: of a sparse file the blocks of 4 KiB that hold something */
  struct timespec mtime;
  const struct attribute *attributes;
  size_t nattributes;
};

/* Reads a tar from `input` (all of n unless stdin ends) to its end marker and to the end of input. For each entry:
 * entry_begin, entry_data and entry_hole until `size` bytes are through (files only), entry_end. */
void untar(void);
size_t input(void *bytes, size_t n);
void entry_begin(const struct entry *e);
void entry_data(const void *bytes, size_t n);
void entry_hole(uint64_t n);     /* so many zeros, not all of them in the archive */
void entry_end(const struct entry *e);

/* ---- layer.c ---- */
_Noreturn void too_large(const char *path);      /* than the layer may be */
bool is_kept(const char *attribute);             /* in a layer */

/* ---- upper.c ---- */
struct pack_order {
  const char *upper;         /* of an overlay, owned by ids that are shifted */
  uid_t base, count;         /* into these */
  uint64_t max_bytes, max_entries;
  long long newest;          /* later times become this one, in Unix seconds */
  char **left_out, **stubs, **lowers;   /* each up to a NULL; see layer.c */
};
void pack_upper(const struct pack_order *order);

#endif
