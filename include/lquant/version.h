#pragma once

/// Written into lquant.json of every output.
#define LQUANT_VERSION "0.1.0"

/// Where model cards say lquant is found: the hub's page of the tag that they carry.
#define LQUANT_HOME "https://huggingface.co/models?other=lquant"
