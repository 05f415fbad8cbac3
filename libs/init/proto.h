/* proto.h: the wire between the agent and berth-init, version 1. README.md explains it in prose;
 * these two and apps/agent/src/runtime/init-client.ts change together.
 *
 * A frame is a 12-byte header and its payload, all integers little-endian:
 *   u32 payload bytes | u8 type | u8 stream | u16 zero | u32 proc
 * A string is u32 length and that many bytes without NUL.
 * When you add a type: decode it in frame.c, carry it out in proc.c, add it to fuzz/seeds. */
#ifndef BERTH_PROTO_H
#define BERTH_PROTO_H

enum {
  PROTO_VERSION = 1,
  HEADER_BYTES = 12,
  MAX_PAYLOAD = 4 << 20,     /* agent to init; only SPAWN comes near it */
  MAX_DATA = 64 << 10,       /* bytes of output or input in one frame */
  MAX_PROCS = 256,           /* known at once, exited but not forgotten ones included */
  MAX_GROUPS = 256,
  MAX_RLIMITS = 16,
  MIN_RING = 4 << 10,
  MAX_RING = 1 << 20,
  DEFAULT_RING = 64 << 10,
  STDIN_WINDOW = 64 << 10,   /* input the agent may have in flight beyond STDIN_ACK */
};

enum frame_type {
  /* agent to init */
  F_HELLO = 1, F_SPAWN = 2, F_STDIN = 3, F_STDIN_EOF = 4, F_SIGNAL = 5, F_RESIZE = 6,
  F_ACK = 7, F_FORGET = 8, F_SHUTDOWN = 9,
  /* init to agent */
  F_HELLO_REPLY = 65, F_STATE = 66, F_STARTED = 67, F_FAILED = 68, F_DATA = 69, F_EOF = 70,
  F_EXIT = 71, F_STDIN_ACK = 72, F_ERROR = 73,
};

enum spawn_flag {
  SPAWN_MAIN = 1, SPAWN_TTY = 2, SPAWN_STDIN = 4, SPAWN_NO_NEW_PRIVS = 8,
  SPAWN_STDERR_TO_STDOUT = 16, SPAWN_ALL_FLAGS = 31,
};

enum stream_id { STREAM_NONE = 0, STREAM_STDOUT = 1, STREAM_STDERR = 2 };

enum proc_state { STATE_STARTING = 0, STATE_RUNNING = 1, STATE_EXITED = 2, STATE_FAILED = 3 };

enum failed_stage {
  STAGE_FORK = 1, STAGE_SETUP = 2, STAGE_CWD = 3, STAGE_EXEC = 4, STAGE_RLIMIT = 5,
};

enum exit_kind { EXIT_CODE = 0, EXIT_SIGNAL = 1 };

enum exit_cause { CAUSE_ITSELF = 0, CAUSE_TIMEOUT = 1, CAUSE_SHUTDOWN = 2, CAUSE_MAIN_ENDED = 3 };

enum signal_scope { SCOPE_PROCESS = 0, SCOPE_GROUP = 1, SCOPE_SANDBOX = 2 };

#endif
