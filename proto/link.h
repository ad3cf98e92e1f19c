/* The link between the supervisor and a worker: frames (proto/frame.h) on a socketpair, beside
 * inherited descriptors. A PyTorch script could be the worker: this page is all it must honour.
 *
 * A worker is `ckptd-worker ROLE` with these descriptors, and its stderr a pipe that the supervisor
 * keeps the tail of. It sets PR_SET_PDEATHSIG=SIGKILL first and checks that its parent is the
 * process of the start frame. It reads one start frame, and ends with an exit code of enum
 * link_exit.
 *
 * Supervisor to worker, first:
 *   {"start": {"role": "train", "parent_pid": N, "run_dir": "/abs/path", "config": {key: text},
 *              "run_id": hex, "run_created": bool (step 0 is allowed), "resume": "memory"|"disk",
 *              "threads": N (0 = all), "engine": "openblas"|"" (forced by the ladder),
 *              "signer": public half of signing_key in hex or "", "signer_error": why "" or ""}}
 *   role save adds   "attempt": N, "foreground": bool (normal priority, all cores),
 *                    "copy": bool (training waits for the slot: copy it first)
 *   role verify adds "id": text ("" = all kept ones)
 *   role scrub reads all kept ones, at the configured pace
 *   role mirror copies what is missing on the configured mirror; it has no lock
 *   role sample adds "id": text, "count": N, "steps": N, "seed": N, "label": N (-1 none),
 *                    "guidance": real, "sampler": "ddim"|"ddpm", "name": file name under previews/
 * Then to a trainer, at any time:
 *   {"stop": {}}                 end after the step that runs; exit code LINK_EXIT_DONE
 *                                (verify, scrub: soon, with LINK_EXIT_FAILED)
 *   {"reload": {"config": {...}}}  take changed schedule and free keys between two steps
 *
 * Worker to supervisor, which believes none of it: texts are cut and become one line without
 * control characters, counts are 0 to 2^53. What is no message, a second `prepared`, `ready` or
 * `saved`, and a `saved` of another state than the pinned one are the worker's end.
 *   {"hello": {"role", "pid", "version", "fingerprint", "fingerprint_text"}}       once
 *   {"prepared": {"section_bytes", "param_count", "model_digest", "data_digest", "data_text",
 *                 "images", "classes", "branch", "catalog": "ok"|"created"|"rebuilt"|"migrated",
 *                 "signer": public key in hex or "",
 *                 "checkpoints": verified on the line, "newest": {id, step, branch, root,
 * path}|null}}
 *   {"ready": {"step", "branch", "from": "memory"|"checkpoint"|"scratch", "checkpoint": id|"",
 *              "engine", "engine_reason", "plan_bytes",
 *              "sandbox": what confines it, as RunStatus shows it}}                trainer
 *   {"plan": {"engine", "engine_reason", "plan_bytes"}}          trainer, after a reload
 *   {"reload_refused": {"text"}}   trainer: it goes on with what it has
 *   {"event": {"kind": text, "level": "info"|"warning"|"error", "step": N, "text": one line}}
 *   {"preview": {"step", "path"}}                                                  trainer
 *   {"finished": {"step"}}        steps_total is reached; exit code follows
 *   {"copied": {}}                the slot is needed no longer                     save
 *   {"saved": {"id", "step", "branch", "root", "path", "bytes", "readback": "direct"|"cache",
 * "signer", "catalogued": bool, "already": bool, "over_bytes": beyond keep_bytes, "stale": the
 * weights of the one before, "ms_write", "ms_total", "ms_cpu"}}    save
 *   {"scrub": {"id": begun, "bytes_done", "bytes_total"}}         verify, scrub: now and then
 *   {"verified": {"id", "ok": bool, "state", "text", "bytes"}}    verify, scrub: each
 *   {"sampled": {"path", "id", "step"}}                                            sample
 *   {"mirrored": {"copied", "removed", "behind", "newest": id|""}}   mirror, also before `failed`
 *   {"failed": {"text": one line}}  before any exit other than DONE
 */
#pragma once

#define LINK_FD 3          /* socketpair, stream */
#define LINK_STATE_FD 4    /* state memfd (train, save); else /dev/null */
#define LINK_PROGRESS_FD 5 /* progress memfd (train, prepare); else /dev/null */
#define LINK_LOCK_FD 6     /* the run's flock, inherited so that it outlives nobody */
#define LINK_KEY_FD 7      /* the file of signing_key (save alone); else /dev/null */

enum link_exit {
	LINK_EXIT_DONE = 0,
	LINK_EXIT_FAILED = 1,          /* said in `failed` */
	LINK_EXIT_STORAGE = 74,        /* disk full, I/O error: try again later */
	LINK_EXIT_TRANSIENT = 75,      /* waits at the slowest pace: `refused`, memory, ... */
	LINK_EXIT_MEMORY_CORRUPT = 76, /* a seal did not match: slots were emptied */
	LINK_EXIT_NONFINITE = 77,      /* nonfinite_limit skipped updates in a row */
	LINK_EXIT_CONFIG = 78,         /* bad configuration or data: a person must act */
};

/* "done", "configuration", ...; "exit code" for others. */
const char *link_exit_name(int code);
