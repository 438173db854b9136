// One case on every engine: forward and backward, judged, and every byte that must not be touched looked at.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "support/case.h"
#include "support/engines.h"
#include "support/judge.h"
#include "support/naive.h"

namespace flash3::test {

enum class Passes { forward, forward_and_backward };

// What is to come out of a case.
class Expectation {
 public:
  Expectation(const Case& c, const Tensors& t, Passes passes);

  // Runs the engine on t (whose outputs are poison) and returns what is wrong, or "".
  // Throws Unsupported if the engine refuses the case.
  std::string check(const TestedEngine& engine, Tensors& t) const;

  const Tensors& truth() const { return truth_; }

 private:
  struct Output;
  std::string check_pass(const TestedEngine& engine, Tensors& t, bool backward) const;

  Case case_;
  Passes passes_;
  Tensors truth_;
  std::vector<NaiveForward> naive_forward_;
  std::vector<NaiveBackward> naive_backward_;
};

// Changes a case's inputs before they are used.
using Edit = std::function<void(Tensors&)>;

// Checks a case on every engine; a failure shows the case and `reproduction`, a command or a line that finds it again.
// A refusal is a failure, unless the engine is partial. Returns whether all is well.
bool verify(const Case& c, Passes passes, const std::string& reproduction, const Edit& edit = {});

// verify() for the nth random case of this run, which an engine that has a smaller share of the cases may skip.
bool verify_random(std::int64_t n, const Case& c, Passes passes);

// The outputs of one engine, not judged; nothing if a partial engine refuses.
std::optional<Tensors> run(const TestedEngine& engine, const Case& c, Passes passes, const Edit& edit = {});

// The names of the outputs in which two runs of cases of equal shape differ by a bit; "" if in none.
std::string different_bits(const Tensors& a, const Tensors& b);

// Which elements the passes write: rows that are used, of `heads` heads of `dim` elements.
std::vector<bool> used_query_elements(const Case& c, std::int64_t dim);
std::vector<bool> used_key_elements(const Case& c, std::int64_t dim);
std::vector<bool> used_rows(const Case& c);

}  // namespace flash3::test
