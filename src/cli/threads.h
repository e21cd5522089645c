#pragma once

namespace lquant::cli {

/// Sees that OpenMP's threads are as many as are asked for, and that they sleep soon when they have nothing to do. Call first of all.
///
/// As many: oneDNN plans its products for omp_get_max_threads() threads and gives wrong numbers, without a word, when the runtime starts fewer of them, as
/// it does with OMP_THREAD_LIMIT, OMP_DYNAMIC=true or OMP_MAX_ACTIVE_LEVELS=0 in the environment. Limits are kept, by asking for no more than they
/// allow.
///
/// Sleep soon: by default GNU's runtime lets waiting threads turn in a loop for a hundredth of a second or more at every barrier; where another program
/// wants a core, such a thread holds the one that the awaited thread needs. Where OMP_WAIT_POLICY or GOMP_SPINCOUNT is set, that holds.
///
/// The runtime reads its settings before main begins, so the program starts itself again with other variables in its environment. Does nothing
/// where the settings are right already, or where the runtime is another.
void settle_threads(char** argv);

}  // namespace lquant::cli
