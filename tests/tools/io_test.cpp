// The file readers and writers: what one writes the other reads; what lies is refused in words.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "io/error.h"
#include "io/file.h"
#include "io/npy.h"
#include "io/safetensors.h"

namespace flash3::tools {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

template <class Parse>
void expect_refused(const Parse& parse, const std::string& file, const std::string& words) {
  try {
    parse(bytes_of(file));
    ADD_FAILURE() << "accepted; expected: " << words;
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
}

std::string safetensors(const std::string& header, const std::string& data = "") {
  std::string prefix(8, '\0');
  prefix[0] = static_cast<char>(header.size() & 0xff);
  prefix[1] = static_cast<char>(header.size() >> 8);
  return prefix + header + data;
}

std::string npy(const std::string& header, const std::string& data = "") {
  std::string file("\x93NUMPY\1\0", 8);
  file += {static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  return file + header + data;
}

class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "flash3-io.XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::filesystem::path operator/(const char* name) const { return path_ / name; }
  auto entries() const { return std::distance(std::filesystem::directory_iterator(path_), {}); }

 private:
  std::filesystem::path path_;
};

TEST(Safetensors, ReadsWhatItWrites) {
  const Folder folder;
  const std::string a = "abcdefgh", b = "xy";
  {
    AtomicFile file(folder / "t.safetensors");
    const std::vector<NamedTensor> tensors{{"a", DType::float32, {2, 1}, bytes_of(a)},
                                           {"b \"quoted\"", DType::bfloat16, {}, bytes_of(b)}};
    write_safetensors(file, tensors, {{"who", "me"}});
    file.commit();
  }
  const auto file = MappedFile::open(folder / "t.safetensors");
  const Safetensors read = parse_safetensors(file->bytes());
  ASSERT_EQ(read.tensors.size(), 2u);
  EXPECT_EQ(read.metadata.at("who"), "me");
  const SafetensorsEntry* t = read.find("a");
  ASSERT_NE(t, nullptr);
  EXPECT_EQ(t->dtype, "F32");
  EXPECT_EQ(t->shape, (Shape{2, 1}));
  EXPECT_TRUE(std::equal(t->data.begin(), t->data.end(), bytes_of(a).begin()));
  ASSERT_NE(read.find("b \"quoted\""), nullptr);
  EXPECT_EQ(read.find("b \"quoted\"")->dtype, "BF16");
  EXPECT_EQ(read.find("c"), nullptr);
}

TEST(Safetensors, RefusesWhatLies) {
  const auto refused = [](const std::string& file, const std::string& words) {
    expect_refused(parse_safetensors, file, words);
  };
  const auto tensor = [](const std::string& fields) { return safetensors("{\"q\":{" + fields + "}}", "12345678"); };
  refused("", "0 bytes");
  refused("1234567", "7 bytes");
  refused(std::string("\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10), "says that its header has 9223372036854775807 bytes");
  refused(safetensors("[]"), "does not start with a JSON object");
  refused(safetensors("{\"q\":"), "not valid JSON");
  refused(safetensors("{\"q\":1e999}"), "not valid JSON");
  refused(safetensors("{\"q\":[[[[1]]]]}"), "nested too deeply");
  refused(safetensors("{\"q\":{},\"q\":{}}"), "\"q\" twice");
  refused(safetensors("{\"q\":7}"), "not described by an object");
  refused(safetensors("{\"__metadata__\":{\"a\":1}}"), "\"a\" is not a string");
  refused(tensor(R"("shape":[2],"data_offsets":[0,8])"), "has no dtype");
  refused(tensor(R"("dtype":"F32","data_offsets":[0,8])"), "has no shape");
  refused(tensor(R"("dtype":"F32","shape":[2])"), "has no data_offsets");
  refused(tensor(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), "shape holds -2");
  refused(tensor(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])"), "shape holds 2.0");
  refused(tensor(R"("dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8])"), "64 bits");
  refused(tensor(R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8])"), "hold 8 bytes");
  refused(tensor(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"), "needs 3 of 4 bytes each");
  refused(tensor(R"("dtype":"F32","shape":[3],"data_offsets":[0,12])"), "the file has 8 bytes of data");
  refused(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[8,4])"), "an end that is not less");
  refused(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])"), "4 bytes at the end belong to no tensor");
  refused(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), "4 bytes before tensor \"q\"");
  refused(safetensors(R"({"q":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                      R"("k":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
                      "123456"),
          "overlap");
}

TEST(Safetensors, RefusesAHugeHeaderThatIsReallyThere) {
  std::string file(8 + max_safetensors_header + 1, ' ');
  const std::uint64_t size = max_safetensors_header + 1;
  for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(size >> (8 * i) & 0xff);
  file[8] = '{';
  expect_refused(parse_safetensors, file, "accepted are up to 16777216");
}

TEST(Npy, ReadsWhatItWrites) {
  const Folder folder;
  const std::string data(24, 'd');
  for (const auto& [dtype, shape] : std::vector<std::pair<DType, Shape>>{{DType::float32, {2, 3}},
                                                                         {DType::float16, {12}},
                                                                         {DType::float64, {3, 1, 1}},
                                                                         {DType::bfloat16, {1, 2, 3, 2}},
                                                                         {DType::int32, {6}}}) {
    AtomicFile file(folder / "t.npy");
    write_npy(file, dtype, shape, bytes_of(data));
    file.commit();
    const auto read = MappedFile::open(folder / "t.npy");
    const NpyArray array = parse_npy(read->bytes());
    EXPECT_EQ(array.shape, shape);
    EXPECT_EQ(dtype_of_npy(array.descr, DType::bfloat16), dtype);
    EXPECT_EQ(array.data.size(), data.size());
    EXPECT_EQ((array.data.data() - read->bytes().data()) % 64, 0);
  }
}

TEST(Npy, RefusesWhatItCannotMean) {
  const auto refused = [](const std::string& file, const std::string& words) {
    expect_refused(parse_npy, file, words);
  };
  const auto header = [](const std::string& descr, const std::string& order, const std::string& shape) {
    return npy("{'descr': " + descr + ", 'fortran_order': " + order + ", 'shape': " + shape + ", }\n", "12345678");
  };
  refused("", "does not start as");
  refused(std::string("\x93NUMPY\4\0\0\0", 10), "version 4.0");
  refused(std::string("\x93NUMPY\2\0\0\0", 10), "truncated within its header");
  refused(std::string("\x93NUMPY\1\0\xff\xff{", 11), "header has 65535 bytes, but only 1 follow");
  refused(header("'<f4'", "True", "(2, 1)"), "Fortran");
  refused(header("'|O'", "False", "(1,)"), "Python objects");
  refused(header("[('a', '<f4')]", "False", "(2,)"), "structured");
  refused(header("'<f4'", "False", "(3,)"), "needs 12 bytes of data, but the file has 8");
  refused(header("'<f4'", "False", "(1,)"), "needs 4 bytes of data, but the file has 8");
  refused(header("'<f4'", "False", "(-2,)"), "negative extent -2");
  refused(header("'<f4'", "False", "(99999999999999999999,)"), "64 bits do not hold");
  refused(header("'<f4'", "False", "(9223372036854775807, 3)"), "64 bits count");
  refused(header("'<f4'", "False", "2"), "not the dictionary");
  refused(header("'f'", "False", "(2,)"), "dtype 'f'");
  refused(npy("{'descr': '<f4', 'shape': (2,), }", "12345678"), "lacks");
  refused(npy("{'descr': '<f4', 'descr': '<f4', }"), "twice");
  refused(npy("import os"), "not the dictionary");
}

TEST(Npy, NamesTypesThatItDoesNotTake) {
  EXPECT_EQ(dtype_of_npy("<f4", std::nullopt), DType::float32);
  for (const auto& [descr, words] : {std::pair{">f4", "big-endian"}, {"<V2", "--dtype bfloat16"}, {"<i8", "<i8"}}) {
    try {
      dtype_of_npy(descr, std::nullopt);
      ADD_FAILURE() << descr;
    } catch (const InputError& error) {
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
  }
}

TEST(AtomicFile, LeavesNothingWithoutCommit) {
  const Folder folder;
  {
    AtomicFile file(folder / "x");
    file.write("half");
    EXPECT_EQ(folder.entries(), 1);
  }
  EXPECT_EQ(folder.entries(), 0);
}

TEST(AtomicFile, ReplacesAtOnce) {
  const Folder folder;
  std::ofstream(folder / "x") << "old";
  AtomicFile file(folder / "x");
  file.write("new");
  const auto contents = [&] {
    std::string text;
    std::ifstream(folder / "x") >> text;
    return text;
  };
  EXPECT_EQ(contents(), "old");
  file.commit();
  EXPECT_EQ(contents(), "new");
  EXPECT_EQ(folder.entries(), 1);
}

TEST(AtomicFile, ReplacesNothingThatIsNoFile) {
  const Folder folder;
  EXPECT_THROW(AtomicFile(folder / ""), InputError);
  EXPECT_THROW(AtomicFile("/dev/null"), InputError);
  EXPECT_THROW(AtomicFile(folder / "missing/x"), InputError);
}

TEST(MappedFile, RefusesWhatIsNoFile) {
  const Folder folder;
  EXPECT_THROW(MappedFile::open(folder / "missing"), InputError);
  EXPECT_THROW(MappedFile::open(folder / ""), InputError);
  EXPECT_THROW(MappedFile::open("/dev/zero"), InputError);
  std::ofstream(folder / "empty").close();
  EXPECT_TRUE(MappedFile::open(folder / "empty")->bytes().empty());
}

}  // namespace
}  // namespace flash3::tools
