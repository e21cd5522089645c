#ifndef LQUANT_TEXT_H_
#define LQUANT_TEXT_H_

/* The C face of the crate lquant-text: tokenizers as `tokenizer.json` describes them, chat templates, and the YAML of model
 * cards.
 *
 * Texts are UTF-8 with an explicit length; invalid bytes are read as U+FFFD. Results belong to the caller, who gives them
 * back with the matching _free. A function that returns int gives 1 for success and 0 for failure; on failure nothing but
 * `error` is written, and `error` holds one sentence to be freed. Nothing unwinds into the caller: a panic inside is an error
 * like any other. A tokenizer may be read from many threads at once. */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lquant_tokenizer lquant_tokenizer;

/* Borrowed bytes; `data` may be null when `size` is 0. */
typedef struct {
  const char* data;
  size_t size;
} lquant_slice;

typedef struct {
  char* data;
  size_t size;
} lquant_string;

typedef struct {
  int32_t* data;
  size_t size;
} lquant_ids;

void lquant_string_free(lquant_string text);
void lquant_ids_free(lquant_ids ids);

/* `json` is the content of tokenizer.json. `added_tokens` is a JSON array of further tokens, each
 * {"content", "single_word", "lstrip", "rstrip", "normalized", "special", "on_clash"}; when an added token of that content
 * exists already, "on_clash" says whether to "replace" it, to "keep" it or to "make_special" what is there. Truncation and
 * padding that the file asks for are off. */
int lquant_tokenizer_open(lquant_slice json, lquant_slice added_tokens, lquant_tokenizer** out, lquant_string* error);
void lquant_tokenizer_close(lquant_tokenizer* tokenizer);

/* The ids of `count` texts, one after another; text i ends before ends[i], an array of `count` that the caller provides.
 * Many texts are encoded in parallel, as RAYON_NUM_THREADS and TOKENIZERS_PARALLELISM say. */
int lquant_tokenizer_encode(const lquant_tokenizer* tokenizer, const lquant_slice* texts, size_t count, int add_special_tokens, lquant_ids* out,
                            size_t* ends, lquant_string* error);

/* Ids that the vocabulary lacks are left out of the text; negative ones are an error. */
int lquant_tokenizer_decode(const lquant_tokenizer* tokenizer, const int32_t* ids, size_t count, int skip_special_tokens, lquant_string* out,
                            lquant_string* error);

/* These three look up, and return 0 without an error when there is no such token. */
int lquant_tokenizer_token_id(const lquant_tokenizer* tokenizer, lquant_slice token, int32_t* out);
int lquant_tokenizer_token(const lquant_tokenizer* tokenizer, int32_t id, lquant_string* out);
/* The number of tokens, added ones included. */
size_t lquant_tokenizer_vocab_size(const lquant_tokenizer* tokenizer);

/* Renders a Jinja chat template in the environment that Hugging Face transformers gives to templates. `context` is a JSON
 * object of the variables. Size, nesting, work, memory and time are bounded. `error` is what follows the template's name in a
 * sentence: "line 3: …", or the message alone. */
int lquant_chat_render(lquant_slice source, lquant_slice context, lquant_string* out, lquant_string* error);

/* The YAML between two lines of "---" at the start of a model card, as a JSON object; {} when there is none:
 * "---\nlicense: mit\n---\n…" -> {"license":"mit"}. */
int lquant_front_matter(lquant_slice text, lquant_string* out, lquant_string* error);

#ifdef __cplusplus
}
#endif

#endif /* LQUANT_TEXT_H_ */
