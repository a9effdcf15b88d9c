// One request in C++ with no library at all: Triton also speaks HTTP (KServe v2 with the binary tensor extension).
//
//     g++ -std=c++17 -O2 -o http_client examples/http_client.cpp
//     ./http_client 127.0.0.1 8000 WIDTH HEIGHT mosaic.u16 denoised.u16 BLACK WHITE RATIO GAIN
//
// mosaic.u16 holds WIDTH x HEIGHT little-endian uint16 DN of an RGGB sensor, without a header; so does the answer. That of
// the demo's file (512 512; levels, ratio and gain 800 16383 100 3.0):
//
//     python -c "import exposure.client.rawfile as r; r.read('demo/sample.dng').mosaic.astype('<u2').tofile('mosaic.u16')"
//
// The contract is in model_repository/README.md. One process serves one request; errors are the server's own sentence.

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>

static int connected(const char* host, const char* port) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host, port, &hints, &found)) throw std::runtime_error(std::string("no such host: ") + host);
    int socket_ = -1;
    for (addrinfo* one = found; one && socket_ < 0; one = one->ai_next) {
        socket_ = socket(one->ai_family, one->ai_socktype, one->ai_protocol);
        if (socket_ >= 0 && connect(socket_, one->ai_addr, one->ai_addrlen)) close(socket_), socket_ = -1;
    }
    freeaddrinfo(found);
    if (socket_ < 0) throw std::runtime_error(std::string("no server answers at ") + host + ":" + port);
    return socket_;
}

static std::string exchange(int socket_, const std::string& message) {
    for (size_t sent = 0; sent < message.size();) {
        ssize_t now = send(socket_, message.data() + sent, message.size() - sent, MSG_NOSIGNAL);
        if (now <= 0) throw std::runtime_error("the connection broke while sending");
        sent += now;
    }
    std::string answer;
    char buffer[65536];
    for (ssize_t now; (now = recv(socket_, buffer, sizeof buffer, 0)) > 0;) answer.append(buffer, now);
    return answer;
}

// A number in the head of an HTTP message; -1 where it is not there.
static long header(const std::string& head, const char* name) {
    size_t place = head.find(name);
    return place == std::string::npos ? -1 : atol(head.c_str() + place + std::string(name).size());
}

static std::string request(const std::string& host, const std::string& mosaic, char** with) {
    const char *width = with[0], *height = with[1], *black = with[4], *white = with[5], *ratio = with[6], *gain = with[7];
    std::ostringstream json;
    json << R"({"inputs":[)"
         << R"({"name":"CFA","shape":[2,2],"datatype":"UINT8","data":[0,1,1,2]},)"
         << R"({"name":"BLACK","shape":[4],"datatype":"FP32","data":[)" << black << "," << black << "," << black << ","
         << black << R"(]},{"name":"WHITE","shape":[1],"datatype":"FP32","data":[)" << white
         << R"(]},{"name":"RATIO","shape":[1],"datatype":"FP32","data":[)" << ratio
         << R"(]},{"name":"GAIN","shape":[1],"datatype":"FP32","data":[)" << gain
         << R"(]},{"name":"SEED","shape":[1],"datatype":"UINT64","data":[0]},)"
         << R"({"name":"ORIGIN","shape":[2],"datatype":"INT32","data":[0,0]},)"
         << R"({"name":"MOSAIC","shape":[)" << height << "," << width
         << R"(],"datatype":"UINT16","parameters":{"binary_data_size":)" << mosaic.size()
         << R"(}}],"outputs":[{"name":"DENOISED","parameters":{"binary_data":true}}]})";
    std::ostringstream head;
    head << "POST /v2/models/exposure_3/infer HTTP/1.1\r\nHost: " << host
         << "\r\nExposure: yes\r\nConnection: close\r\nContent-Type: application/octet-stream\r\nInference-Header-Content-Length: "
         << json.str().size() << "\r\nContent-Length: " << json.str().size() + mosaic.size() << "\r\n\r\n";
    return head.str() + json.str() + mosaic;
}

int main(int count, char** arguments) try {
    if (count != 11) throw std::runtime_error("give HOST PORT WIDTH HEIGHT IN OUT BLACK WHITE RATIO GAIN");
    std::ifstream in(arguments[5], std::ios::binary);
    std::string mosaic((std::istreambuf_iterator<char>(in)), {});
    size_t expected = 2 * strtoul(arguments[3], nullptr, 10) * strtoul(arguments[4], nullptr, 10);
    if (mosaic.size() != expected)
        throw std::runtime_error(std::string(arguments[5]) + " has " + std::to_string(mosaic.size()) + " bytes; " +
                                 std::to_string(expected) + " are needed");
    int socket_ = connected(arguments[1], arguments[2]);
    std::string answer = exchange(socket_, request(arguments[1], mosaic, arguments + 3));
    close(socket_);
    if (answer.empty()) throw std::runtime_error("the server closed the connection without an answer");
    size_t body = answer.find("\r\n\r\n") + 4;
    if (answer.compare(0, 12, "HTTP/1.1 200")) throw std::runtime_error(answer.substr(std::min(body, answer.size())));
    long json = header(answer.substr(0, body), "Inference-Header-Content-Length: ");
    if (json < 0 || answer.size() != body + json + mosaic.size()) throw std::runtime_error("the answer was cut short");
    std::ofstream out(arguments[6], std::ios::binary);
    out.write(answer.data() + body + json, mosaic.size());
    out.close();
    if (!out) throw std::runtime_error(std::string(arguments[6]) + " cannot be written");
} catch (const std::exception& error) {
    fprintf(stderr, "http_client: %s\n", error.what());
    return 1;
}
