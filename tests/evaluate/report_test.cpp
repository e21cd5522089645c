#include "evaluate/report_html.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "evaluate/report_figures.h"

namespace lquant::evaluate {
namespace {

constexpr const char* kHostile = "\"><script>alert(1)</script><svg onload='x'>{{body}}\xFF";

/// A report in which every text is an attack.
Report hostile() {
  Report report;
  report.teacher = report.data = report.lquant = report.teacher_sha256 = report.data_sha256 = kHostile;
  report.rows = report.alone_rows = 2, report.sequence_length = 8, report.blocks = 1, report.layers = "linear";
  for (int i = 0; i < 2; ++i) {
    FolderReport f;
    f.name = f.sha256 = kHostile;
    f.bytes = 1000 * (i + 1), f.parameters = 4000;
    f.quality.has_teacher = true, f.quality.tokens = 16, f.quality.nll = 2, f.quality.kl = 0.1 / (i + 1), f.quality.kl_se = 0.01;
    f.kl = distribution_of({0, 0.01f, 0.1f, 3}, {-2, 1});
    f.linears = {{kHostile, kHostile, 0, 3, 64, kHostile, 500}, {kHostile, "embed", -1, 0, 0, "bfloat16", 500}};
    f.alone = {{kHostile, kHostile, 0, 0.01, 0.001}};
    f.worst = {{0, 3, kHostile, kHostile, 3, 0.5, 0.1, {{kHostile, 0.5}}, {{kHostile, 0.1}}}};
    f.record = {{kHostile, kHostile},
                {"options", {{kHostile, kHostile}}},
                {"source", {{"name", kHostile}}},
                {"data", kHostile},
                {"quality", {{"steps", {{{"step", kHostile}, {kHostile, 1}, {"kept", true}}, {{"kl", nullptr}}}}}}};
    report.folders.push_back(std::move(f));
  }
  return report;
}

TEST(ReportHtml, NothingThatWasReadIsMarkup) {
  const auto html = report_html(hostile());
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_EQ(html.find("onload='"), std::string::npos);
  EXPECT_EQ(html.find('\xFF'), std::string::npos);
  EXPECT_NE(html.find("&lt;script&gt;"), std::string::npos);
  EXPECT_NE(html.find("{{body}}"), std::string::npos);  // a text that looks like a place of the template stays a text
  EXPECT_EQ(html.find("</html>"), html.rfind("</html>"));
}

TEST(ReportHtml, LoadsNothing) {
  const auto html = report_html(hostile());
  for (const char* part : {" src=", "url(", "@import", "href=\"http", "<link", "<iframe"}) EXPECT_EQ(html.find(part), std::string::npos) << part;
  EXPECT_NE(html.find("default-src 'none'"), std::string::npos);
}

TEST(ReportHtml, OddRecordsAreShownAsTheyAre) {
  auto report = hostile();
  for (const auto& record :
       {nlohmann::ordered_json(nullptr), nlohmann::ordered_json::object(), nlohmann::ordered_json{{"options", 3}, {"quality", {1, 2}}},
        nlohmann::ordered_json{{"quality", {{"steps", {nlohmann::ordered_json::object()}}}}}}) {
    report.folders[0].record = record;
    EXPECT_FALSE(report_html(report).empty());
  }
  report.folders[0].record = nullptr, report.folders[0].record_note = "none <here>";
  EXPECT_NE(report_html(report).find("none &lt;here&gt;"), std::string::npos);
}

TEST(ReportFigures, StandWithoutFigures) {
  FolderReport f;
  f.kl = distribution_of({0}, decades_of({0}));
  EXPECT_NE(size_map(f, 0, "a").find("<svg"), std::string::npos);
  EXPECT_NE(alone_map(f, 3, "a").find("Nothing in this folder is quantized"), std::string::npos);
  EXPECT_NE(histogram(f, "a").find("<svg"), std::string::npos);
  Report same;
  same.folders = {f, f};  // both at one point, no divergence at all
  const auto drawn = curve(same, "c");
  EXPECT_EQ(drawn.find("nan"), std::string::npos);
  EXPECT_EQ(drawn.find("inf"), std::string::npos);
}

TEST(ReportHtml, WithoutErrorsThereIsNoPlusMinus) {
  auto report = hostile();
  for (auto& f : report.folders) {
    f.quality.nll_se = f.quality.kl_se = f.alone[0].kl_se = std::nan("");
    f.record = {{"quality", {{"steps", {{{"step", "gptq"}, {"kl", 0.1}, {"kl_se", nullptr}}}}}}};
  }
  auto html = report_html(report);
  html = html.substr(0, html.find("<pre>"));  // lquant.json as it is
  for (const char* part : {"±", ">nan", "\"nan", "null", "one standard error", "class=\"error\""}) EXPECT_EQ(html.find(part), std::string::npos) << part;
  EXPECT_NE(html.find("One row has no standard error"), std::string::npos);
  const auto json = report.to_json();
  EXPECT_TRUE(json.at("folders").at(0).at("alone").at(0).at("kl_se").is_null());
  EXPECT_TRUE(json.at("folders").at(0).at("quality").at("kl_se").is_null());
}

TEST(ReportFigures, NamesOfManyFoldersAtOnePlaceFindAnEnd) {
  auto report = hostile();
  report.folders[0].quality.kl = 0.1;
  for (int i = 0; i < 40; ++i) report.folders.push_back(report.folders[0]);
  EXPECT_NE(curve(report, "c").find("</svg>"), std::string::npos);
}

TEST(Megabytes, ThreeDigits) {
  EXPECT_EQ(megabytes(512), "0.51 kB");
  EXPECT_EQ(megabytes(123456), "123 kB");
  EXPECT_EQ(megabytes(12345678), "12.3 MB");
  EXPECT_EQ(megabytes(123456789), "123 MB");
  EXPECT_EQ(megabytes(1234567890), "1.23 GB");
}

}  // namespace
}  // namespace lquant::evaluate
