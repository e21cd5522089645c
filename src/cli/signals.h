#pragma once

#include "run/stop.h"

namespace lquant::cli {

/// Signals reach the program on one thread of its own and interrupt no other: a handler that ran on a thread which computes would find
/// a stack that is none (oneDNN's AVX-512 product keeps its stack pointer elsewhere while it runs) and overwrite the heap.
///
/// Ctrl-C (SIGINT), SIGTERM and a closed terminal (SIGHUP) request a stop while somebody heeds one, and end the program at once when nobody
/// does or when it is asked a second time. A signal that the program was started to ignore (nohup) stays ignored, SIGINT excepted: shells
/// ignore it for every command put into the background by a script, where a program that can save is meant to hear it all the same.
/// A file that grew past its limit (SIGXFSZ) is an error of the write that met it, as a reader that went away is (cli/print.h).
///
/// The signals are blocked before any thread starts, those of shared libraries included. Throws Error when no thread can be made.
void take_signals(run::Stop& stop);

}  // namespace lquant::cli
