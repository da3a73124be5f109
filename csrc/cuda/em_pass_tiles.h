// Rows cut into tiles, tiles dealt to clusters: plain C++, once a data set.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace maxmin::em {

constexpr int kTileRows = 32;

// The first annotator of a tile began in an earlier one; the last goes on in the next; its chunk ends here.
enum TileFlags : int { kOpenIn = 1, kOpenOut = 2, kChunkOut = 4 };

struct alignas(16) Tile {
  int64_t row0, annotator0;  // the first row, the first annotator
  int16_t rows, annotators;
  uint32_t begins;  // bit of each row that begins a comparison; rows past the end begin one each
  int32_t flags, chunk;
  // Of each row: first and last row of its annotator in this tile, and which of the tile's annotators it is. Rows past
  // the end stand for themselves and weigh nothing.
  uint8_t first[kTileRows], last[kTileRows], annotator[kTileRows];
  float v[kTileRows];
};
static_assert(sizeof(Tile) == 256, "one bulk copy");

struct Tiles {
  std::vector<Tile> tiles;
  std::vector<int32_t> begin;            // (clusters + 1) tiles of each cluster
  std::vector<int32_t> split_begin;      // (split annotators + 1) chunks of each
  std::vector<int64_t> split_annotator;  // annotators that are cut into chunks
};

class TileCutter {
 public:
  // sizes: rows of each annotator, none of them 0. Without `carry` none is longer than a tile. lengths: rows of each
  // comparison, none of them 0 or longer than a tile, which no tile and no chunk cuts; null: every row is a comparison.
  TileCutter(const int64_t* sizes, int64_t n_annotators, const int64_t* lengths, bool carry, int64_t chunk_rows)
      : sizes_(sizes), n_(n_annotators), lengths_(lengths), carry_(carry), chunk_rows_(chunk_rows) {}

  TileCutter(const TileCutter&) = delete;
  TileCutter& operator=(const TileCutter&) = delete;

  // Tiles of whole annotators waste what does not fit: above a twentieth of the rows, or where somebody is longer than
  // a tile, annotators cross tiles.
  static bool wants_carry(const int64_t* sizes, int64_t n_annotators) {
    int64_t n_rows = 0, n_tiles = 0, room = 0;
    for (int64_t a = 0; a < n_annotators; ++a) {
      if (sizes[a] > kTileRows) return true;
      n_rows += sizes[a];
      if (sizes[a] > room) {
        ++n_tiles;
        room = kTileRows;
      }
      room -= sizes[a];
    }
    return n_tiles > 1 && n_tiles * kTileRows * 20 > 21 * n_rows;
  }

  Tiles cut(int64_t n_clusters) {
    int64_t n_rows = 0;
    for (int64_t a = 0; a < n_; ++a) n_rows += sizes_[a];
    out_.begin.push_back(0);
    out_.split_begin.push_back(0);
    for (int64_t a = 0; a < n_; ++a) {
      const bool split = carry_ && sizes_[a] > chunk_rows_;
      const int64_t needs = carry_ ? length() : sizes_[a];
      if (open_ && (split || tile_.rows + needs > kTileRows)) close(0);
      next_cluster(n_rows, n_clusters);
      if (!open_) open(a, 0);
      if (split) {
        chunks(a, n_rows, n_clusters);
      } else {
        put_all(a, sizes_[a]);
      }
    }
    if (open_) close(0);
    out_.begin.resize(n_clusters + 1, static_cast<int32_t>(out_.tiles.size()));
    return std::move(out_);
  }

 private:
  // A cluster gets its share of the rows and then what is left of the annotator or chunk.
  void next_cluster(int64_t n_rows, int64_t n_clusters) {
    while (static_cast<int64_t>(out_.begin.size()) < n_clusters &&
           row_ * n_clusters >= static_cast<int64_t>(out_.begin.size()) * n_rows) {
      if (open_) close(0);
      out_.begin.push_back(static_cast<int32_t>(out_.tiles.size()));
    }
  }
  void chunks(int64_t a, int64_t n_rows, int64_t n_clusters) {
    int32_t chunk = out_.split_begin.back();
    for (int64_t left = sizes_[a]; left;) {
      if (!open_) {
        next_cluster(n_rows, n_clusters);
        open(a, 0);
      }
      const int64_t n = whole_comparisons(std::min(left, chunk_rows_));
      put_all(a, n);
      tile_.chunk = chunk++;
      close(kOpenOut | kChunkOut);
      left -= n;
    }
    out_.split_begin.push_back(chunk);
    out_.split_annotator.push_back(a);
  }
  int64_t length() const { return lengths_ ? lengths_[comparison_] : 1; }
  // Rows of the next comparisons, as many as `room` holds.
  int64_t whole_comparisons(int64_t room) const {
    if (!lengths_) return room;
    int64_t n = 0;
    for (int64_t c = comparison_; room - n > 0 && lengths_[c] <= room - n; ++c) n += lengths_[c];
    return n;
  }
  void put_all(int64_t a, int64_t left) {
    while (left) {
      const int64_t n = whole_comparisons(std::min<int64_t>(left, kTileRows - tile_.rows));
      put(static_cast<int>(n));
      left -= n;
      if (left) {
        close(kOpenOut);
        open(a, kOpenIn);
      }
    }
  }
  void open(int64_t annotator, int flags) {
    std::memset(&tile_, 0, sizeof tile_);
    tile_.row0 = row_;
    tile_.annotator0 = annotator;
    tile_.flags = flags;
    tile_.chunk = -1;
    open_ = true;
  }
  void put(int n) {
    for (int r = tile_.rows; r < tile_.rows + n; ++r) {
      tile_.first[r] = static_cast<uint8_t>(tile_.rows);
      tile_.last[r] = static_cast<uint8_t>(tile_.rows + n - 1);
      tile_.annotator[r] = static_cast<uint8_t>(tile_.annotators);
      tile_.v[r] = 1.f;
    }
    for (int64_t left = n; left; ++comparison_) {
      tile_.begins |= uint32_t{1} << (tile_.rows + n - left);
      left -= length();
    }
    tile_.rows = static_cast<int16_t>(tile_.rows + n);
    ++tile_.annotators;
    row_ += n;
  }
  void close(int flags) {
    tile_.flags |= flags;
    for (int r = tile_.rows; r < kTileRows; ++r) {
      tile_.begins |= uint32_t{1} << r;
      tile_.first[r] = tile_.last[r] = static_cast<uint8_t>(r);
      tile_.annotator[r] = static_cast<uint8_t>(tile_.annotators);
    }
    out_.tiles.push_back(tile_);
    open_ = false;
  }

  const int64_t* sizes_;
  int64_t n_;
  const int64_t* lengths_;
  bool carry_;
  int64_t chunk_rows_;
  int64_t row_ = 0, comparison_ = 0;
  bool open_ = false;
  Tile tile_{};
  Tiles out_;
};

}  // namespace maxmin::em
