//! Who may vouch for an https host: the repository's own authorities, else those that git would be told of, else
//! the host's.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_native_certs::{load_certs_from_paths, load_native_certs};

use super::super::process::AUTHORITIES;

/// For connections that trust `own`, a file of certificates as PEM, if there is one.
pub(super) fn settings(own: Option<PathBuf>) -> io::Result<ClientConfig> {
    let [.., git_file, git_directory] = AUTHORITIES else {
        unreachable!("there are more");
    };
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let found = match (own, named(git_file), named(git_directory)) {
        (Some(file), ..) => load_certs_from_paths(Some(&file), None),
        (None, None, None) => load_native_certs(),
        (None, file, directory) => load_certs_from_paths(file.as_deref(), directory.as_deref()),
    };
    let mut roots = RootCertStore::empty();
    let certificates = found.certs;
    roots.add_parsable_certificates(certificates.iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    if roots.is_empty() {
        // No https host is trusted then, as git has it.
        return Ok(builder.with_root_certificates(roots).with_no_client_auth());
    }
    let trust = Trust::new(roots, certificates, provider).map_err(io::Error::other)?;
    let builder = builder.dangerous();
    Ok(builder
        .with_custom_certificate_verifier(Arc::new(trust))
        .with_no_client_auth())
}

/// The usual rules, but for one: a certificate that signed itself, and is among those that are trusted, may be
/// the host's own, as it may for git.
#[derive(Debug)]
struct Trust {
    usual: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl Trust {
    fn new(
        roots: RootCertStore,
        trusted: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, rustls::client::VerifierBuilderError> {
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        Ok(Self {
            usual: usual.build()?,
            trusted,
        })
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let usual = &self.usual;
        match usual.verify_server_cert(shown, intermediates, name, ocsp, now) {
            // That it has the key to it, the handshake shows.
            Err(Error::InvalidCertificate(_)) if self.trusted.iter().any(|one| one == shown) => {
                rustls::client::verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
