// The bar chart: a bar for each value, heights in proportion, and text that cannot break the SVG.
#include "plot.h"

#include <gtest/gtest.h>

#include <regex>

namespace flash3::tools {
namespace {

std::vector<double> bar_heights(const std::string& svg) {
  std::vector<double> heights;
  const std::regex bar("height=\"([0-9.]+)\" rx=\"1.5\"");
  for (std::sregex_iterator it(svg.begin(), svg.end(), bar), end; it != end; ++it)
    heights.push_back(std::stod((*it)[1]));
  return heights;
}

BarChart chart() {
  return {"title",
          "subtitle",
          "seqlen",
          "GFLOP/s",
          {"forward", "backward"},
          {"512", "1k"},
          {{"panel", {{10, 20}, {40, -1}}}},
          1};
}

TEST(Plot, BarsAreInProportionAndAbsentOnesAreLeftOut) {
  const std::vector<double> heights = bar_heights(to_svg(chart()));
  ASSERT_EQ(heights.size(), 3u);  // by group: forward and backward at 512, forward at 1k
  EXPECT_NEAR(heights[1] / heights[0], 4, 0.05);
  EXPECT_NEAR(heights[2] / heights[0], 2, 0.05);
}

TEST(Plot, EscapesText) {
  BarChart c = chart();
  c.title = "<a> & \"b\"\x1b[31m";
  const std::string svg = to_svg(c);
  EXPECT_NE(svg.find("&lt;a&gt; &amp; &quot;b&quot;[31m"), std::string::npos);
  EXPECT_EQ(svg.find("<a>"), std::string::npos);
}

TEST(Plot, DrawsAChartWithoutAnyValue) {
  BarChart c = chart();
  c.panels[0].values = {{-1, -1}, {-1, -1}};
  EXPECT_TRUE(bar_heights(to_svg(c)).empty());
}

}  // namespace
}  // namespace flash3::tools
