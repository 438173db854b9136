// Grouped bar charts as SVG.
#pragma once

#include <string>
#include <vector>

namespace flash3::tools {

struct BarChart {
  struct Panel {
    std::string title;
    std::vector<std::vector<double>> values;  // [series][group]; a value below 0 is absent
  };

  std::string title, subtitle;
  std::string x_label, y_label;
  std::vector<std::string> series;  // the bars of a group, in the legend
  std::vector<std::string> groups;  // along the x axis
  std::vector<Panel> panels;        // row by row
  std::size_t columns = 1;
};

// Panels share one y axis, so that bars compare across them. Neutral on light and dark pages.
std::string to_svg(const BarChart& chart);

}  // namespace flash3::tools
