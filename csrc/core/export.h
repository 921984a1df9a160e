#pragma once

// libweft.so hides its symbols. WEFT_API marks the few that weft._C calls.
#define WEFT_API __attribute__((visibility("default")))
