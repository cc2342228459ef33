/* What `wire.c` needs of OpenSSL. Without WITH_TLS there is nothing behind it, and `options.c` has refused already. */
#ifndef TLS_H
#define TLS_H

#include "wire.h"

void tls_prepare(enum tls tls);
bool tls_wanted(void);
void tls_start(struct wire *w, bool resume);
int tls_handshake(struct wire *w);
bool tls_resumed(const struct wire *w);
ssize_t tls_send(struct wire *w, const char *data, size_t size);
ssize_t tls_receive(struct wire *w, char *data, size_t size);
void tls_keep_session(struct wire *w);
void tls_finish(struct wire *w);
void tls_free(struct wire *w);
const char *tls_error(void);
const char *tls_library(void);

#endif
