#ifndef LQUANT_HUB_H_
#define LQUANT_HUB_H_

/* The C face of the crate lquant-hub: the Hugging Face hub by the crate `hf-hub`, and Parquet files by the crate `parquet`.
 *
 * Each function takes one JSON object and gives one; both are described below by an example. It returns 1 for success and 0 for
 * failure; on failure nothing but `error` is written: one sentence, to be freed like any result. Nothing unwinds into the
 * caller. Texts are UTF-8 with an explicit length.
 *
 * From the environment: HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN (else the file HF_TOKEN_PATH or HF_HOME/token;
 * HF_HUB_DISABLE_IMPLICIT_TOKEN), and the proxies' variables. The token goes to the hub alone and into no message. */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  const char* data;
  size_t size;
} lquant_hub_slice;

typedef struct {
  char* data;
  size_t size;
} lquant_hub_string;

void lquant_hub_string_free(lquant_hub_string text);

/* Told, on the calling thread and at most ten times a second, what goes on. With `total` above 0, `text` names the work and `done` of `total` bytes
 * are done; with `total` 0, `text` is a remark to be shown once. What it returns other than 0 stops the work, which then fails with the sentence
 * "interrupted". `report` may be null. */
typedef struct {
  int (*report)(void* context, lquant_hub_slice text, uint64_t done, uint64_t total);
  void* context;
} lquant_hub_events;

typedef int lquant_hub_function(lquant_hub_slice request, lquant_hub_events events, lquant_hub_string* out, lquant_hub_string* error);

/* The files of a model that lquant reads, in the shared cache, complete and checked against the hub's hashes; what is there already is not fetched.
 * {"repo": "org/name", "revision": "main", "file": "x.gguf"}       "revision" and "file" may be null; "file" asks for that one alone, and for
 *                                                               all its pieces when it is split
 * -> {"folder": "…/snapshots/SHA", "revision": "SHA", "file": "…/x.gguf"} */
lquant_hub_function lquant_hub_model;

/* Rows of a data set as a .jsonl file, kept beside the cache under a name that says all that they depend on: `rows` of them (all when null), drawn
 * with `seed` from row groups spread over the split; only these groups are fetched.
 * {"repo": "org/name", "config": null, "split": "train", "revision": null, "rows": 1056, "seed": 123}
 * -> {"file": "….jsonl", "revision": "SHA", "rows": 1056} */
lquant_hub_function lquant_hub_rows;

/* A local Parquet file as JSON lines, kept beside the cache under a name by the file's hash; a row group in memory at a time.
 * {"file": "x.parquet"} -> {"file": "….jsonl"} */
lquant_hub_function lquant_hub_parquet;

/* Makes the repository when it is not there, and commits the files: large ones a commit each, then the rest in one. Files that the repository has
 * already, by size and hash, are not sent again, so that a second call continues a first one that failed.
 * {"repo": "user/name", "folder": "mlx_model", "files": ["config.json", …], "replaced": {"README.md": "text"}, "private": false, "revision": null,
 *  "message": "…"}
 * -> {"url": "https://…", "sent": ["…"], "kept": ["…"]} */
lquant_hub_function lquant_hub_upload;

#ifdef __cplusplus
}
#endif

#endif /* LQUANT_HUB_H_ */
