#include "tls.h"

#include "fail.h"

#ifdef WITH_TLS

#include <errno.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

static SSL_CTX *context;

void tls_prepare(enum tls tls)
{
    int version = tls == TLS_1_2 ? TLS1_2_VERSION : TLS1_3_VERSION;
    context = SSL_CTX_new(TLS_client_method());
    if (!context || !SSL_CTX_set_min_proto_version(context, version) ||
        !SSL_CTX_set_max_proto_version(context, version))
        fail("TLS: %s", tls_error());
    /* The same cryptography for every server, whichever it would prefer. P-256 is the certificate's curve. */
    if (!SSL_CTX_set_cipher_list(context, "ECDHE-ECDSA-AES256-GCM-SHA384") ||
        !SSL_CTX_set_ciphersuites(context, "TLS_AES_256_GCM_SHA384") ||
        !SSL_CTX_set1_groups_list(context, "X25519:P-256"))
        fail("TLS: %s", tls_error());
    /* The server's certificate is our own and proves nothing; its signature is verified all the same. */
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_default_read_buffer_len(context, 64 * 1024);
}

bool tls_wanted(void)
{
    return context != NULL;
}

void tls_start(struct wire *w, bool resume)
{
    SSL *ssl = SSL_new(context);
    if (!ssl || !SSL_set_fd(ssl, w->fd))
        fail("TLS: %s", tls_error());
    if (resume && w->session)
        SSL_set_session(ssl, w->session);
    SSL_set_connect_state(ssl);
    w->ssl = ssl;
}

static int judge(SSL *ssl, int result)
{
    switch (SSL_get_error(ssl, result)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE: return WIRE_WAIT;
    case SSL_ERROR_ZERO_RETURN: return WIRE_END;
    default: return WIRE_BROKEN;
    }
}

static void clear_errors(void)
{
    ERR_clear_error();
    errno = 0;
}

int tls_handshake(struct wire *w)
{
    clear_errors();
    int result = SSL_do_handshake(w->ssl);
    if (result == 1)
        return WIRE_DONE;
    int answer = judge(w->ssl, result);
    return answer == WIRE_END ? WIRE_BROKEN : answer;
}

bool tls_resumed(const struct wire *w)
{
    return SSL_session_reused(w->ssl);
}

ssize_t tls_send(struct wire *w, const char *data, size_t size)
{
    clear_errors();
    int result = SSL_write(w->ssl, data, size > INT_MAX ? INT_MAX : (int)size);
    return result > 0 ? result : judge(w->ssl, result);
}

ssize_t tls_receive(struct wire *w, char *data, size_t size)
{
    clear_errors();
    int result = SSL_read(w->ssl, data, (int)size);
    return result > 0 ? result : judge(w->ssl, result);
}

void tls_keep_session(struct wire *w)
{
    SSL_SESSION *session = SSL_get1_session(w->ssl);
    if (session) {
        SSL_SESSION_free(w->session);
        w->session = session;
    }
}

void tls_finish(struct wire *w)
{
    clear_errors();
    SSL_shutdown(w->ssl);
}

void tls_free(struct wire *w)
{
    SSL_free(w->ssl);
    w->ssl = NULL;
}

const char *tls_error(void)
{
    static char text[256];
    unsigned long code = ERR_peek_last_error();
    if (!code)
        return "the connection ended";
    ERR_error_string_n(code, text, sizeof text);
    return text;
}

const char *tls_library(void)
{
    return OpenSSL_version(OPENSSL_VERSION);
}

#else

void tls_prepare(enum tls tls) { (void)tls; fail("built without TLS"); }
bool tls_wanted(void) { return false; }
void tls_start(struct wire *w, bool resume) { (void)w; (void)resume; }
int tls_handshake(struct wire *w) { (void)w; return WIRE_BROKEN; }
bool tls_resumed(const struct wire *w) { (void)w; return false; }
ssize_t tls_send(struct wire *w, const char *data, size_t size) { (void)w; (void)data; (void)size; return WIRE_BROKEN; }
ssize_t tls_receive(struct wire *w, char *data, size_t size) { (void)w; (void)data; (void)size; return WIRE_BROKEN; }
void tls_keep_session(struct wire *w) { (void)w; }
void tls_finish(struct wire *w) { (void)w; }
void tls_free(struct wire *w) { (void)w; }
const char *tls_error(void) { return "the connection ended"; }
const char *tls_library(void) { return "none"; }

#endif
