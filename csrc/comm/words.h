// Collectives in words, for messages.
#pragma once

#include <sstream>
#include <string>

#include "comm/params.h"

namespace weft::comm {

inline std::string words(const Collective& c) {
  std::ostringstream text;
  text << name_of(c.kind) << "(";
  if (is_matrix(c.kind))
    text << c.rows() << " × " << c.columns;
  else
    text << c.n << " elements";
  text << " of " << name_of(c.dtype);
  if (c.kind != Kind::all_gather && !is_matrix(c.kind)) text << ", " << name_of(c.reduction);
  if (c.int8) text << ", int8";
  if (c.group) text << ", groups of " << c.group;
  text << ")";
  return text.str();
}

}  // namespace weft::comm
