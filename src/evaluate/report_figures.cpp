// A figure is drawn in its own pixels and shrinks with the page; colours are classes of the page's style, so that the same figure serves light and
// dark. Maps are pictures as a whole; charts are groups, for their points can be reached by keyboard, which a picture's inside cannot.
#include "evaluate/report_figures.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "evaluate/html.h"
#include "evaluate/scale.h"

namespace lquant::evaluate {
namespace {

std::string opening(const std::string& id, const char* role, double width, double height, const std::string& title, const std::string& description) {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"{}\" aria-labelledby=\"{}-t {}-d\" width=\"{}\" height=\"{}\" viewBox=\"0 0 {} {}\">\n"
      "<title id=\"{}-t\">{}</title>\n<desc id=\"{}-d\">{}</desc>\n",
      role, id, id, width, height, width, height, id, escape(title), id, escape(description));
}

std::string figure(const std::string& svg, const std::string& caption, const std::string& table) {
  return "<figure>\n" + scrolled(svg, "figure") + "<figcaption>" + caption + "</figcaption>\n" + folded("The figure as a table", table) +
         "</figure>\n";
}

std::string text(double x, double y, const std::string& what, const char* anchor = "start", const char* style = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor,
                     *style ? fmt::format(" class=\"{}\"", style) : std::string(), escape(what));
}

std::string line(double x1, double y1, double x2, double y2, const char* style) {
  return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"{}\"/>\n", x1, y1, x2, y2, style);
}

// --- maps -----------------------------------------------------------------------------------------------------------

constexpr double kRow = 24, kMargin = 92;
constexpr double kMapWidth = 900;  // the page's column

struct Cell {
  int block = 0;
  std::string role, style, label, title;
};

/// Rows: the embedding, the blocks, the head; columns: roles in the order of the forward pass.
std::string map(const std::vector<Cell>& cells, int blocks, const std::string& id, const std::string& title, const std::string& description,
                const std::vector<std::pair<std::string, std::string>>& legend) {
  std::vector<std::string> columns;
  bool head = false;
  int embeddings = 0, drawn = 0;  // of tokens and, in some models, of positions: side by side
  for (const auto& cell : cells) {
    embeddings += cell.role == "embed";
    head |= cell.role == "head";
    if (cell.block >= 0 && std::find(columns.begin(), columns.end(), cell.role) == columns.end()) columns.push_back(cell.role);
  }
  const auto count = std::max<std::size_t>(columns.size(), 1);
  const double width = std::min((kMapWidth - kMargin) / static_cast<double>(count), 260.0), all = width * static_cast<double>(count);
  const double first = 22 + (embeddings > 0 ? kRow : 0), below = first + blocks * kRow + (head ? kRow : 0);
  std::string out = opening(id, "img", kMapWidth, below + 40, title, description);
  for (std::size_t c = 0; c < columns.size(); ++c) out += text(kMargin + (static_cast<double>(c) + 0.5) * width, 14, columns[c], "middle", "quiet");
  if (embeddings > 0) out += text(kMargin - 10, 22 + kRow - 8, "embedding", "end", "quiet");
  for (int b = 0; b < blocks; ++b) out += text(kMargin - 10, first + (b + 1) * kRow - 8, fmt::format("block {}", b), "end", "quiet");
  if (head) out += text(kMargin - 10, below - 8, "head", "end", "quiet");
  const auto box = [&](double x, double y, double w, const std::string& style, const std::string& label, const std::string& hint) {
    out += fmt::format("<g class=\"cell {}\"><rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{}\" rx=\"3\"/>", style, x, y, w, kRow);
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", x + w / 2, y + kRow - 8, escape(label));
    if (!hint.empty()) out += "<title>" + escape(hint) + "</title>";
    out += "</g>\n";
  };
  for (const auto& cell : cells) {
    const auto column = std::find(columns.begin(), columns.end(), cell.role) - columns.begin();
    const double y = cell.role == "embed" ? 22 : cell.role == "head" ? below - kRow : first + cell.block * kRow;
    const double share = all / std::max(1, embeddings);
    if (cell.role == "embed")
      box(kMargin + drawn++ * share, y, share, cell.style, cell.label, cell.title);
    else if (cell.block < 0)
      box(kMargin, y, all, cell.style, cell.label, cell.title);
    else
      box(kMargin + static_cast<double>(column) * width, y, width, cell.style, cell.label, cell.title);
  }
  const double step = std::min(125.0, (kMapWidth - kMargin) / static_cast<double>(std::max<std::size_t>(legend.size(), 1)));
  for (std::size_t i = 0; i < legend.size(); ++i)
    box(kMargin + static_cast<double>(i) * step, below + 14, step, legend[i].first, legend[i].second, "");
  return out + "</svg>";
}

std::string bits_style(int bits) {
  return bits == 2 || bits == 3 || bits == 4 || bits == 5 || bits == 6 || bits == 8 ? fmt::format("b{}", bits) : "b0";
}

// --- charts ---------------------------------------------------------------------------------------------------------

std::string place(int block) { return block < 0 ? "–" : fmt::format("{}", block); }

}  // namespace

std::string megabytes(std::int64_t bytes) {
  const auto b = static_cast<double>(bytes);
  const auto [unit, name] = b >= 999.5e6 ? std::pair(1e9, "GB") : b >= 999.5e3 ? std::pair(1e6, "MB") : std::pair(1e3, "kB");
  const double value = b / unit;
  return fmt::format("{:.{}f} {}", value, value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2, name);
}

std::string size_map(const FolderReport& folder, int blocks, const std::string& id) {
  std::vector<Cell> cells;
  std::map<int, std::int64_t> used;
  Table table{"Formats and sizes of linears", {"linear", "block", "role", "mode", "bits", "group", "bytes"}, {}, "names"};
  for (const auto& l : folder.linears) {
    const auto format = l.bits ? fmt::format("{}/{}", l.bits, l.group_size) : "dense";
    const auto words = (l.bits ? fmt::format("{} {} bits, groups of {}", l.mode, l.bits, l.group_size) : l.mode) +
                       (l.experts ? fmt::format(", {} experts", l.experts) : std::string());
    const auto role = l.experts ? fmt::format("{} × {}", l.role, l.experts) : l.role;
    cells.push_back({l.block, l.role, bits_style(l.bits), fmt::format("{} · {}", format, megabytes(l.bytes)),
                     fmt::format("{}: {}, {} bytes", l.path, words, l.bytes)});
    used[l.bits] += l.bytes;
    table.rows.push_back({escape(l.path), place(l.block), escape(role), escape(l.mode), l.bits ? fmt::format("{}", l.bits) : "–",
                          l.bits ? fmt::format("{}", l.group_size) : "–", data(l.bytes, fmt::format("{}", l.bytes))});
  }
  std::vector<std::pair<std::string, std::string>> legend;
  std::string shares;
  for (const auto& [bits, bytes] : used) {
    const auto what = bits ? fmt::format("{} bits", bits) : std::string("dense");
    legend.push_back({bits_style(bits), what});
    shares += fmt::format("{}{} in {}", shares.empty() ? "" : ", ", megabytes(bytes), what);
  }
  const auto svg = map(cells, blocks, id, "Bits and size of every linear of " + folder.name,
                       "Linears take " + shares + ". The table below has all of them.", legend);
  return figure(svg, "Bits / group size and bytes of every linear, scales and biases included: " + shares + ".", table.html());
}

std::string alone_map(const FolderReport& folder, int blocks, const std::string& id) {
  constexpr int kColours = 6;
  double most = 0, sum = 0;
  for (const auto& a : folder.alone) most = std::max(most, a.kl), sum += a.kl;
  // Half a decade a colour, from the largest down: what is lighter than all of them is under a three-hundredth of it.
  const auto colour = [&](double kl) {
    return kl > 0 && most > 0 ? std::clamp(kColours - 1 + static_cast<int>(std::ceil(2 * std::log10(kl / most) - 1e-9)), 0, kColours - 1) : 0;
  };
  std::vector<Cell> cells;
  Table table{"KL to the teacher when replaced alone", {"replaced", "block", "role", "KL (nats/token)", "standard error"}, {}, "names"};
  const AloneFigure* worst = nullptr;
  for (const auto& a : folder.alone) {
    cells.push_back(
        {a.block, a.role, fmt::format("k{}", colour(a.kl)), number(a.kl), fmt::format("{}: KL {} nats/token", a.name, with_error(a.kl, a.kl_se))});
    if (!worst || a.kl > worst->kl) worst = &a;
    table.rows.push_back({escape(a.name), place(a.block), escape(a.role), data(a.kl, number(a.kl)), data(a.kl_se, number(a.kl_se))});
  }
  std::vector<std::pair<std::string, std::string>> legend;
  for (int c = 0; most > 0 && c < kColours; ++c) {
    const double upper = most * std::pow(10.0, 0.5 * (c - kColours + 1));
    legend.push_back({fmt::format("k{}", c), "≤ " + number(upper)});
  }
  const auto summary =
      worst ? fmt::format("Most comes from {}: {}. Together they add up to {}.", worst->name, with_error(worst->kl, worst->kl_se), number(sum))
            : std::string("Nothing in this folder is quantized.");
  return figure(map(cells, blocks, id, "KL when replaced alone, " + folder.name, summary, legend),
                "KL to the teacher, in nats a token, when this part's weights alone take the place of the teacher's. " + escape(summary),
                table.html());
}

std::string histogram(const FolderReport& folder, const std::string& id) {
  constexpr double kWidth = 900, kHeight = 250, kLeft = 122, kRight = 770, kTop = 72, kBottom = 208;
  const auto& d = folder.kl;
  const auto bins = d.counts.size();
  const Scale x{true, d.edge(0), d.edge(bins), kLeft, kRight};
  std::int64_t all = d.below, highest = d.below;
  for (const auto count : d.counts) all += count, highest = std::max(highest, count);
  const auto share = [&](std::int64_t count) { return 100.0 * static_cast<double>(count) / static_cast<double>(std::max<std::int64_t>(all, 1)); };
  const Scale y{false, 0, std::max(share(highest), 1e-9), kBottom, kTop};
  const std::array<std::pair<const char*, double>, 4> marks{{{"median", d.median}, {"p90", d.p90}, {"p99", d.p99}, {"max", d.max}}};
  std::string said;
  for (const auto& [name, value] : marks) said += fmt::format("{}{} {}", said.empty() ? "" : ", ", name, number(value));

  std::string out = opening(id, "group", kWidth, kHeight, "KL over the tokens of " + folder.name, "Nats a token: " + said + ".");
  for (const auto& tick : y.ticks())
    out += line(kLeft - 56, y.at(tick.value), kRight, y.at(tick.value), "rule") +
           text(kLeft - 62, y.at(tick.value) + 4, tick.label + " %", "end", "quiet");
  Table table{"Tokens by KL (nats)", {"from", "to", "tokens"}, {}, ""};
  const auto bar = [&](double from, double to, std::int64_t count, const char* style, const std::string& hint) {
    if (count == 0) return;
    const double top = std::min(y.at(share(count)), kBottom - 1);  // one token can be seen
    out += fmt::format("<rect class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\"><title>{}</title></rect>\n", style, from + 1,
                       top, to - from - 2, kBottom - top, escape(hint));
  };
  const auto said_count = [&](std::int64_t count) { return fmt::format("{} tokens ({:.2g} %)", count, share(count)); };
  bar(kLeft - 48, kLeft - 22, d.below, "below", fmt::format("below {}: {}", number(d.edge(0)), said_count(d.below)));
  table.rows.push_back({"less", number(d.edge(0)), data(d.below, fmt::format("{}", d.below))});
  for (std::size_t i = 0; i < bins; ++i) {
    bar(x.at(d.edge(i)), x.at(d.edge(i + 1)), d.counts[i], "bar",
        fmt::format("{} to {}: {}", number(d.edge(i)), number(d.edge(i + 1)), said_count(d.counts[i])));
    table.rows.push_back({number(d.edge(i)), number(d.edge(i + 1)), data(d.counts[i], fmt::format("{}", d.counts[i]))});
  }
  out += line(kLeft - 56, kBottom, kRight, kBottom, "axis");
  out += text(kLeft - 35, kBottom + 18, "less", "middle", "quiet");
  for (int decade = 0; decade <= static_cast<int>(bins) / Distribution::kPerDecade; ++decade) {
    const auto at = static_cast<std::size_t>(decade) * Distribution::kPerDecade;
    const double v = d.edge(at), px = x.at(v);
    out += line(px, kBottom, px, kBottom + 5, "axis") + text(px, kBottom + 18, plain(v), "middle", "quiet");
  }
  out += text((kLeft + kRight) / 2, kHeight - 6, "KL of a token (nats)", "middle", "quiet");
  double height = 14;
  for (const auto& [name, value] : marks) {
    const double px = x.at(value);
    out += fmt::format("<g class=\"point\" tabindex=\"0\" role=\"img\" aria-label=\"{} {} nats\">\n", name, number(value));
    out += line(px, height - 10, px, kBottom, "mark") + text(px + 6, height, fmt::format("{} {}", name, number(value)), "start", "halo");
    out += "</g>\n";
    height += 16;
  }
  return figure(out + "</svg>", "Share of tokens by their KL, in fifths of a decade: " + said + " nats.", table.html());
}

std::string curve(const Report& report, const std::string& id) {
  constexpr double kWidth = 900, kHeight = 400, kLeft = 70, kRight = 870, kTop = 16, kBottom = 350;
  std::vector<double> bytes, kl;
  bool bars = false;  // none where errors are not known
  std::vector<const FolderReport*> order;
  for (const auto& f : report.folders) {
    bytes.push_back(static_cast<double>(f.bytes) / 1e6);
    // A bar that comes near zero would stretch the axis without end; it ends at the axis.
    const double error = std::isfinite(f.quality.kl_se) ? f.quality.kl_se : 0;
    bars |= std::isfinite(f.quality.kl_se);
    for (const double v : {f.quality.kl, f.quality.kl + error, std::max(f.quality.kl - error, f.quality.kl / 3)}) kl.push_back(v);
    order.push_back(&f);
  }
  std::stable_sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->bytes < b->bytes; });
  const auto x = linear_scale(bytes, kLeft, kRight), y = log_scale(kl, kBottom, kTop);
  std::string out =
      opening(id, "group", kWidth, kHeight, "KL against size",
              std::string("One point a folder, its size in megabytes across, its KL to the teacher upwards on a logarithmic axis") +
                  (bars ? "; bars are one standard error." : "."));
  for (const auto& t : y.ticks())
    out += line(kLeft, y.at(t.value), kRight, y.at(t.value), "rule") + text(kLeft - 8, y.at(t.value) + 4, t.label, "end", "quiet");
  for (const auto& t : x.ticks())
    out += line(x.at(t.value), kBottom, x.at(t.value), kBottom + 5, "axis") + text(x.at(t.value), kBottom + 20, t.label, "middle", "quiet");
  out += line(kLeft, kBottom, kRight, kBottom, "axis") + text((kLeft + kRight) / 2, kHeight - 8, "size of the weights (MB)", "middle", "quiet");
  out += fmt::format("<text class=\"quiet\" text-anchor=\"middle\" transform=\"translate(14 {}) rotate(-90)\">KL (nats/token)</text>\n",
                     (kTop + kBottom) / 2);

  std::string front;
  double best = 0;
  for (const auto* f : order)
    if (front.empty() || f->quality.kl < best) {
      front += fmt::format("{}{:.1f},{:.1f}", front.empty() ? "" : " ", x.at(static_cast<double>(f->bytes) / 1e6), y.at(f->quality.kl));
      best = f->quality.kl;
    }
  out += "<polyline class=\"front\" points=\"" + front + "\"/>\n";
  std::vector<std::pair<double, double>> labels;
  for (const auto* f : order) {
    const auto& q = f->quality;
    const double px = x.at(static_cast<double>(f->bytes) / 1e6), py = y.at(q.kl);
    const bool left = px > 0.62 * kWidth;
    double at = py + (left ? 16 : -6);  // clear of the line, which falls from left to right
    // A name moves down until no other is within a line of it; names are as wide as a third of the figure.
    for (bool moved = true; moved;) {
      moved = false;
      for (const auto& [lx, ly] : labels)
        if (std::abs(lx - px) < kWidth / 3 && std::abs(ly - at) < 14.5) at = ly + 15, moved = true;
    }
    labels.push_back({px, at});
    const auto exact = fmt::format("KL {}, {}, {:.3f} bits per weight", with_error(q.kl, q.kl_se), megabytes(f->bytes), f->bits_per_weight());
    const auto name = beginning(f->name, 36);
    const char* anchor = left ? "end" : "start";
    const double tx = px + (left ? -12 : 12);
    out += fmt::format("<g class=\"point\" tabindex=\"0\" role=\"img\" aria-label=\"{}: {}\">\n", escape(f->name), escape(exact));
    if (std::isfinite(q.kl_se)) {
      const double low = y.at(q.kl - q.kl_se), high = y.at(q.kl + q.kl_se);
      out += line(px, low, px, high, "error") + line(px - 8, low, px + 8, low, "error") + line(px - 8, high, px + 8, high, "error");
    }
    out += fmt::format("<circle class=\"dot\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\"/>\n", px, py);
    out += text(tx, at, name, anchor, "halo") + text(tx, at - 16, exact, anchor, "tip halo") + "</g>\n";
  }
  Table table{"KL and size of each folder", {"folder", "bytes", "KL (nats/token)", "standard error"}, {}, "names"};
  for (const auto* f : order)
    table.rows.push_back({visible(f->name, 200), data(f->bytes, fmt::format("{}", f->bytes)), data(f->quality.kl, number(f->quality.kl)),
                          data(f->quality.kl_se, number(f->quality.kl_se))});
  const std::string caption = "The dashed line joins the folders that no smaller one beats.";
  return figure(out + "</svg>", bars ? "Bars are one standard error. " + caption : caption, table.html());
}

}  // namespace lquant::evaluate
