#pragma once

/// Written into lquant.json of every output.
#define LQUANT_VERSION "0.1.0"
