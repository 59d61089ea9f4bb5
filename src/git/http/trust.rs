//! Who may vouch for an https host: the repository's own authorities, else those that git would be told of, else
//! the host's.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_native_certs::{load_certs_from_paths, load_native_certs};

use super::super::process::{AUTHORITIES_DIR, AUTHORITIES_FILE};

/// For connections that trust `own`, a file of certificates as PEM, if there is one.
pub(super) fn settings(own: Option<PathBuf>) -> io::Result<ClientConfig> {
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let of_git = (named(AUTHORITIES_FILE), named(AUTHORITIES_DIR));
    let certificates = match (own, of_git) {
        (Some(file), _) => certificates_in("ca_file", &file)?,
        (None, (None, None)) => load_native_certs().certs,
        (None, (file, directory)) => {
            let file = file.map(|file| certificates_in(AUTHORITIES_FILE, &file));
            let mut all = file.transpose()?.unwrap_or_default();
            if let Some(directory) = directory {
                all.extend(load_certs_from_paths(None, Some(&directory)).certs);
            }
            all
        }
    };
    let mut roots = RootCertStore::empty();
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

/// The certificates of a file that `field` names, of which there has to be one.
fn certificates_in(field: &str, file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let found = load_certs_from_paths(Some(file), None);
    if !found.certs.is_empty() {
        return Ok(found.certs);
    }
    let why = match found.errors.first() {
        Some(error) => error.to_string(),
        None => "it has no certificate".to_owned(),
    };
    Err(io::Error::other(format!("{field}: {why}")))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_vouches_for_nobody_is_said_so() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("authority.pem");
        let said = |file: &Path| {
            let settings = settings(Some(file.to_owned()));
            settings.expect_err("it has none").to_string()
        };
        assert!(said(&file).starts_with("ca_file: "), "{}", said(&file));
        std::fs::write(&file, "no certificate\n").expect("its own");
        assert_eq!(said(&file), "ca_file: it has no certificate");
    }
}
