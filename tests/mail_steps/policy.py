"""What the tests' mail server (aiosmtpd) takes, from whom, and how it answers.

Mail is kept in a Maildir, its envelope in headers. The names of recipients say what happens to them.
"""

import os
from base64 import b64decode

from aiosmtpd.handlers import Mailbox
from aiosmtpd.smtp import AuthResult


class Policy(Mailbox):
    async def handle_MAIL(self, server, session, envelope, address, options):
        if os.environ.get("LOGIN") and not session.authenticated:
            return "530 5.7.0 authentication required"
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("nobody"):
            return "550 5.1.1 no such user here"
        if address.startswith("later") and not os.path.exists(os.path.join(self.mail_dir, "open")):
            return "451 4.7.1 greylisted, try again"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        answer = await super().handle_DATA(server, session, envelope)
        if envelope.rcpt_tos[0].startswith("cut"):
            # Kept, and the line breaks before the client hears of it.
            server.transport.abort()
        return answer or "250 OK"

    async def auth_PLAIN(self, server, args):
        _, user, password = b64decode(args[1]).split(b"\0")
        good = [user.decode(), password.decode()] == os.environ.get("LOGIN", "").split(" ")
        return AuthResult(success=good, handled=False)
