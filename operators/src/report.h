// Messages that are put together piece by piece: what does not fit any more is left out.
#ifndef DAT_REPORT_H
#define DAT_REPORT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

enum { REPORT_BYTES = 8192 };

typedef struct {
  char text[REPORT_BYTES];
  int used;
} Report;

static inline void clear(Report* it) {
  it->text[0] = '\0';
  it->used = 0;
}

// Append to the report, and return false, so that a check can end with it.
__attribute__((format(printf, 2, 3))) static inline bool report(Report* to, const char* format, ...) {
  va_list values;
  va_start(values, format);
  int more = vsnprintf(to->text + to->used, (size_t)(REPORT_BYTES - to->used), format, values);
  va_end(values);
  to->used = more < 0 || to->used + more >= REPORT_BYTES ? REPORT_BYTES - 1 : to->used + more;
  return false;
}

#endif
