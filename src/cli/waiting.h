#pragma once

namespace lquant::cli {

/// Lets OpenMP's threads sleep soon when they have nothing to do. By default GNU's runtime lets them spin for a hundredth of a second or more at every
/// barrier; where another program wants a core, a spinning thread holds the one that the awaited thread needs, and a run takes up to 20 times
/// as long. The runtime reads its settings before main begins, so the program starts itself again with one more variable in its environment.
/// Does nothing where OMP_WAIT_POLICY or GOMP_SPINCOUNT is set, or where the runtime is another. Call first of all.
void wait_briefly(char** argv);

}  // namespace lquant::cli
